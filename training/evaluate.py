"""Measures the bundled checkpoint on values, phrasings and tools that training never saw.

`python -m training.evaluate [--model FOLDER] [--count N]` prints a table and exits 1 when a target is missed.
Prompts are encoded and outputs parsed by glmchat itself; decoding is greedy.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, Glm4MoeForCausalLM
from transformers.utils import logging

from glmchat import ParsedOutput, encode_prompt, parse_output

from . import words
from .dialogues import dialogue
from .held_out import NEW_TOOLS, Case, cases
from .tokenizer import EOS
from .train import ROOT, fast_dtype

LONGEST = 320
TARGETS = {
    "format valid": 0.99, "right tool": 0.97, "arguments exact": 0.90, "sum, thinking": 0.95, "thinking off obeyed": 1.0,
    "Chinese greeting": 0.95, "table": 0.95, "code": 0.95, "new tool": 0.80,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What the model wrote for one case."""

    case: Case
    text: str
    stopped: bool
    parsed: ParsedOutput

    @property
    def valid(self) -> bool:
        """Ended by itself, think block closed, every call whole and of a declared tool, no stray tags."""
        declared = {t["function"]["name"] for t in self.case.tools or ()}
        p = self.parsed
        content = p.content or ""
        return (
            self.stopped
            and not p.unclosed_think
            and p.incomplete_tool_call is None
            and not p.malformed_tool_calls
            and all(c.name in declared for c in p.tool_calls)
            and not re.search(r"</?(think|tool_call|arg_key|arg_value|tool_response)>|<\|", content)
            and bool(content or p.tool_calls)
        )

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.parsed.tool_calls]

    @property
    def right_tool(self) -> bool:
        return self.names == [n for n, _ in self.case.calls or ()]

    @property
    def right(self) -> bool:
        """All that the case asks for."""
        answer = self.parsed.content or ""
        if not self.valid or not self.right_tool:
            return False
        if self.case.kind == "new tool":
            return all(
                set(c.arguments) == set(a)
                for c, (_, a) in zip(self.parsed.tool_calls, self.case.calls or (), strict=True)
            )
        if [(c.name, c.arguments) for c in self.parsed.tool_calls] != (self.case.calls or []):
            return False
        if self.case.says and not any(_holds(answer, s) for s in self.case.says):
            return False
        return not self.case.shows or _SHAPES[self.case.shows](answer)


def _holds(answer: str, wanted: str) -> bool:
    if wanted[-1].isdigit():
        return re.search(re.escape(wanted) + r"(?!\d)", answer) is not None
    return wanted.lower() in answer.lower()


_SHAPES = {
    "chinese": lambda a: (
        re.search(r"[\u4e00-\u9fff]", a) is not None and not re.search(r"[a-z]{4}", a.replace("glmchat", ""))
    ),
    "table": lambda a: (
        re.search(r"^\|.+\|\n\|( --- \|)+\n\|.+\|", a, re.M) is not None
        and len({r.count("|") for r in a.split("\n") if r.startswith("|")}) == 1
    ),
    "code": lambda a: re.search(r"```python\n.+?\n```", a, re.S) is not None,
    "list": lambda a: re.search(r"^- \S+.*\n- \S+", a, re.M) is not None,
}


def load(folder: Path) -> tuple[Glm4MoeForCausalLM, Tokenizer]:
    """The checkpoint's trunk, in the dtype that is fast here, and its tokenizer."""
    logging.set_verbosity_error()  # it would list the MTP layer's tensors, one a line, as not expected
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=fast_dtype(device)).to(device).eval()
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


@torch.inference_mode()
def generate(
    model, tokenizer: Tokenizer, prompts: list[list[int]], *, longest: int = LONGEST
) -> list[list[int]]:
    """Greedy continuations of a batch, each to its stop token, which it ends with if it came."""
    stops = [tokenizer.token_to_id(t) for t in EOS]
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), stops[0])
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=longest,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
    rows = out[:, width:].tolist()
    return [row[: next((i for i, t in enumerate(row) if t in stops), len(row)) + 1] for row in rows]


def prompts_of(tokenizer: Tokenizer, todo: list[Case]) -> list[list[int]]:
    return [encode_prompt(tokenizer, c.messages, c.tools, enable_thinking=c.thinking) for c in todo]


def run(model, tokenizer: Tokenizer, todo: list[Case], *, batch: int = 64) -> list[Outcome]:
    prompts = prompts_of(tokenizer, todo)
    stops = {tokenizer.token_to_id(t) for t in EOS}
    order = sorted(range(len(todo)), key=lambda i: len(prompts[i]))
    out: dict[int, Outcome] = {}
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        for i, row in zip(some, generate(model, tokenizer, [prompts[i] for i in some]), strict=True):
            stopped = row[-1] in stops
            text = tokenizer.decode(row[: len(row) - stopped], skip_special_tokens=False)
            out[i] = Outcome(todo[i], text, stopped, parse_output(text, tools=todo[i].tools))
    return [out[i] for i in range(len(todo))]


def assert_held_out(count: int = 20_000) -> None:
    """No held-out tool name, parameter name, value or question occurs in `count` training dialogues."""
    rng = random.Random(1)
    seen_names: set[str] = set()
    seen: set[str] = set()
    asked: set[str] = set()
    for _ in range(count):
        d = dialogue(rng)
        for tool in d.tools or ():
            seen_names |= {tool["function"]["name"], *tool["function"]["parameters"]["properties"]}
        for message in d.messages:
            if message["role"] == "user":
                asked.add(_bare(message["content"]))
            seen |= set(re.findall(r"\w+", message["content"].lower()))
    new = {
        n
        for t in NEW_TOOLS
        for n in (t.declaration["function"]["name"], *t.declaration["function"]["parameters"]["properties"])
    }
    assert not new & seen_names, f"tools of the evaluation occur in training: {new & seen_names}"
    values = {
        w.lower()
        for w in (*words.HELD_WORDS, *words.HELD_NAMES, *(c for c in words.HELD_CITIES if " " not in c))
    }
    assert not values & seen, f"values of the evaluation occur in training: {values & seen}"
    questions = {_bare(c.messages[-1]["content"]) for c in cases(random.Random(2), 400)}
    assert not questions & asked, f"questions of the evaluation occur in training: {questions & asked}"


def _bare(question: str) -> str:
    return " ".join(re.findall(r"\w+|[^\w\s.?!]", question.lower()))


def rates(outcomes: list[Outcome]) -> dict[str, tuple[float, int]]:
    """Name of a measure → (share right, number of cases)."""
    table: dict[str, list[bool]] = defaultdict(list)
    for o in outcomes:
        kind = o.case.kind
        table["format valid"].append(o.valid)
        if not o.case.thinking:
            table["thinking off obeyed"].append(o.parsed.reasoning is None)
        else:
            table["thinks when on"].append(bool(o.parsed.reasoning))
        if kind == "known tool":
            table["right tool"].append(o.right_tool)
            table["arguments exact"].append(o.right)
            table[f"  {o.case.calls[0][0]}"].append(o.right)
        else:
            table[kind].append(o.right)
    return {k: (sum(v) / len(v), len(v)) for k, v in table.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "glmchat" / "demo")
    parser.add_argument("--count", type=int, default=120, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--misses", type=int, default=0, help="show this many misses of each kind")
    args = parser.parse_args()

    assert_held_out()
    model, tokenizer = load(args.model)
    outcomes = run(model, tokenizer, cases(random.Random(args.seed), args.count))

    shown: dict[str, int] = defaultdict(int)
    for o in outcomes:
        if not o.right and shown[o.case.kind] < args.misses:
            shown[o.case.kind] += 1
            print(
                f"--- {o.case.kind}: {o.case.messages[-1]['content']!r}  want {o.case.calls} {o.case.says} {o.case.shows}\n{o.text!r}"
            )
    missed = False
    size = sum(f.stat().st_size for f in args.model.iterdir() if f.is_file()) / 1e6
    print(f"{'measure':<22} {'right':>8} {'cases':>6}  target")
    for name, (rate, count) in rates(outcomes).items():
        target = TARGETS.get(name)
        verdict = "" if target is None else f"≥ {target:.0%}  {'ok' if rate >= target else 'MISSED'}"
        missed |= target is not None and rate < target
        print(f"{name:<22} {rate:>8.1%} {count:>6}  {verdict}")
    print(f"{'checkpoint':<22} {size:>5.1f} MB         ≤ 20 MB  {'ok' if size <= 20 else 'MISSED'}")
    return int(missed or size > 20)


if __name__ == "__main__":
    sys.exit(main())
