"""A whole answer in the terminal against `transformers chat` and `serve`, and decoding against llama.cpp.

Both chats run in pseudo-terminals, on the same weights, greedily, and are asked in turn; a speed is an
answer's tokens by the seconds from Enter to its end. llama.cpp decodes the same weights as a BF16 GGUF file.
What is not installed is left out: `pip install 'transformers[serving]' xllamacpp gguf`, and SmolLM2 (see
tests/smollm2.py).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect

from glmchat.glm.checkpoints import resolve
from glmchat.glm.encode import encode_prompt
from glmchat.messages import Message

from .checkpoint import add_model_argument, chosen_models
from .decode import limit, plain, side
from .gguf import write_gguf
from .report import Comparison, measure_pairs, show
from .terminal import GLMCHAT, PATIENCE_S, STATS, leave, spawn

GOAL = 1.2
TRANSFORMERS = [sys.executable, "-m", "transformers.cli.transformers"]
STYLE = rb"(?:\x1b\[[\d;]*m)*"
THEIR_PROMPT = re.compile(rb"me" + STYLE + rb">" + STYLE + rb":")
THEIR_STATS = re.compile(rb"(\d+)" + STYLE + rb" tokens in ")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--prompt", default="What is 98765432198765 + 12345678912345?")
    parser.add_argument("--tokens", type=int, default=200, help="new tokens at most (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="measured pairs (%(default)s)")
    parser.set_defaults(device_map="cpu")


def run(args: argparse.Namespace) -> None:
    """Measure and print the tables."""
    with chosen_models(args) as models:
        if missing("fastapi", "openai"):
            print("transformers serve is left out: pip install 'transformers[serving]'")
        else:
            rows = [_against_transformers(model, args) for model in models]
            show("An answer in the terminal, tokens/s from Enter to its end", rows)
        if missing("xllamacpp", "gguf"):
            print("llama.cpp is left out: pip install xllamacpp gguf")
            return
        llamas = [model for model in models if Path(model).name.lower().startswith("smollm2")]
        if not llamas:
            print("llama.cpp is left out: it is compared on SmolLM2, which is not here")
            return
        show("Greedy decoding, tokens/s", [_against_llama_cpp(model, args) for model in llamas])


def missing(*packages: str) -> bool:
    return any(importlib.util.find_spec(name) is None for name in packages)


def _against_transformers(model: str, args: argparse.Namespace) -> Comparison:
    folder = str(resolve(model).folder)
    with _serve(folder) as url, tempfile.TemporaryDirectory() as nowhere:
        flags = [f"max_new_tokens={args.tokens}", "do_sample=False"]
        command = [*TRANSFORMERS, "chat", folder, url, *flags, "--user", "me"]
        theirs = spawn(command, cwd=nowhere, offline=False)  # offline it would not even ask its server
        theirs.expect(THEIR_PROMPT)
        ours = spawn(
            [*GLMCHAT, "--model", folder, "--greedy", "--max-tokens", str(args.tokens), "--tools", "none"]
        )
        ours.expect("/help lists")

        def speed_of_ours() -> float:
            ours.send("/clear\r")
            return _speed(ours, args.prompt, STATS)

        def speed_of_theirs() -> float:
            theirs.send("!clear\r")
            theirs.expect(THEIR_PROMPT)
            return _speed(theirs, args.prompt, THEIR_STATS)

        speed_of_ours(), speed_of_theirs()  # both have loaded the model
        speeds = measure_pairs(speed_of_ours, speed_of_theirs, args.repeats)
        leave(ours)
        theirs.close(force=True)
    return Comparison(f"{Path(model).name} ÷ transformers serve + chat", *speeds, GOAL, True)


def _speed(chat: pexpect.spawn[bytes], prompt: str, stats: re.Pattern[bytes]) -> float:
    """Tokens/s of a whole answer."""
    began = time.perf_counter()
    chat.send(f"{prompt}\r")
    chat.expect(stats)
    return int(chat.match[1].replace(b",", b"")) / (time.perf_counter() - began)


@contextlib.contextmanager
def _serve(folder: str) -> Iterator[str]:
    """`transformers serve` with this model; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [*TRANSFORMERS, "serve", folder, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(PATIENCE_S):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            if server.poll() is not None:
                raise SystemExit(f"transformers serve ended with {server.returncode}.")
            time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait()


def _against_llama_cpp(model: str, args: argparse.Namespace) -> Comparison:
    checkpoint = resolve(model)
    template = checkpoint.folder / "chat_template.jinja"
    prompt = encode_prompt(checkpoint.tokenizer, [Message("user", args.prompt)], template=template)
    with (
        tempfile.TemporaryDirectory() as folder,
        side(plain, model, args) as ours,
        side(limit, model, args) as allowed,
        side(_llama_cpp, str(write_gguf(Path(folder) / "bf16.gguf")), (prompt, args.tokens)) as theirs,
    ):
        ours(), theirs()
        speeds = measure_pairs(lambda: ours()[1], theirs, args.repeats)
        most = allowed()[1]
    shares = [f"{statistics.median(side) / most:.0%}" for side in speeds]
    print(
        f"Reading the weights of a token allows {most:.0f} tokens/s here: "
        f"glmchat reaches {shares[0]} of it, llama.cpp {shares[1]}."
    )
    return Comparison(f"{checkpoint.folder.name}, BF16 ÷ llama.cpp", *speeds, None, True)


def _llama_cpp(file: str, asked: tuple[list[int], int]) -> Callable[[], float]:
    """Decode speed of llama.cpp after a prompt, in tokens/s as it reports them."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 2048, 1, True, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    server = xllamacpp.Server(params)
    prompt, tokens = asked

    def measure() -> float:
        request = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "cache_prompt": False}
        return float(server.handle_completions(request)["timings"]["predicted_per_second"])

    return measure
