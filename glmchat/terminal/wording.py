"""How events are said in words, the same in every front end."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from ..engine.base import ModelInfo
from ..events import FinishReason, ThinkingDone, ToolDone, ToolServerFailed, TurnDone
from ..messages import ToolCall
from ..tools.approve import Request
from ..tools.declare import Remote, Run


def call_text(call: ToolCall) -> str:
    """`get_weather(city="Oslo")`, on one line."""
    arguments = ", ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in call.arguments.items())
    return f"{call.name}({arguments})"


def arguments_text(call: ToolCall) -> str:
    """Each argument in full: text as it is, anything else as JSON."""
    lines = []
    for name, value in call.arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
        lines.append(f"{name}:\n{text}" if "\n" in text else f"{name}: {text}")
    return "\n".join(lines)


def request_text(request: Request) -> str:
    """A call that waits for approval, whole: every argument, and what exactly would be run."""
    arguments = arguments_text(request.call) or "(no arguments)"
    body = f"{arguments}\n{_run_text(request)}"
    return f"⚙ {request.tool.name}\n{textwrap.indent(body, '  ')}"


def _run_text(request: Request) -> str:
    match request.tool.run:
        case Remote(server, tool):
            where = server.url or shlex.join(server.command)
            return f"→ {tool} of the MCP server {server.name}, {where}"
        case Run(builtin="http_get", private=private):
            return f"→ built into glmchat{', private addresses allowed' if private else ''}"
        case Run(builtin=name, roots=roots) if name not in ("", "run_command"):
            takes_path = "path" in request.tool.parameters["properties"]
            within = ", ".join(str(root) for root in roots or (Path.cwd(),))
            return "→ built into glmchat" + f", within {within}" * takes_path
    return f"$ {shlex.join(request.words)}"


def outcome_text(done: ToolDone) -> str:
    """`✓ 0.4 s`, `✗ exit code 2 · 0.4 s`, `✗ not allowed`."""
    took = f"{done.seconds:.1f} s" if done.seconds else ""
    return " ".join(("✓" if done.ok else "✗", " · ".join(filter(None, (done.note, took))))).strip()


def server_text(failed: ToolServerFailed) -> str:
    """That an MCP server is not there, and why."""
    return f"The MCP server {failed.name} {failed.why}. Its tools are left out."


def result_text(done: ToolDone) -> str:
    """What a call gave, for a person: of a run that failed what it wrote, its errors last."""
    try:
        told = json.loads(done.text)
    except ValueError:
        told = None
    if not isinstance(told, dict) or not {"stdout", "stderr"} <= told.keys():
        return "" if done.note.startswith("not allowed") else done.text.strip("\n")
    return "\n".join(filter(None, (str(told[name]).strip("\n") for name in ("stdout", "stderr"))))


def stopped_text(reason: FinishReason) -> str:
    """Why an answer ended before its end and what helps; "" when it is whole."""
    if reason == "length":
        return "The answer stopped at the token limit; raise --max-tokens."
    if reason == "tool_limit":
        return "The model called tools again and again without an answer; it was stopped."
    if reason == "context":
        return "The answer stopped because the model's context is full; start anew, or with a shorter prompt."
    return ""


def endless_text(info: ModelInfo) -> str:
    """What to do about a checkpoint whose answers never end by themselves; "" where they do."""
    if info.ends:
        return ""
    return (
        f"{info.name} names no token that ends an answer, so each goes on until --max-tokens, or until the "
        "context is full; add eos_token_id to its generation_config.json."
    )


def dropped_text(turns: int) -> str:
    """What happened to the oldest turns when the context was full."""
    what = (
        "oldest question and its answer are"
        if turns == 1
        else f"{turns} oldest questions and their answers are"
    )
    return f"The context is full: the {what} no longer sent. They stay in the conversation."


def stats_text(done: TurnDone) -> str:
    """`128 tokens · 41.3 tokens/s · first token 0.35 s · 90 of 120 prompt tokens reused`."""
    parts = [count(done.usage.completion_tokens, "token")]
    if speed := done.timing.decode_tokens_per_s:
        parts.append(f"{speed_text(speed)} tokens/s")
    if done.timing.ttft_s is not None:
        parts.append(f"first token {_time(done.timing.ttft_s, 2)}")
    if done.usage.cached_tokens:
        parts.append(f"{done.usage.cached_tokens:,} of {done.usage.prompt_tokens:,} prompt tokens reused")
    return " · ".join(parts)


def thought_text(done: ThinkingDone) -> str:
    """`Thought for 12.3 s · 340 tokens`."""
    unfinished = "" if done.closed else " · unfinished"
    return f"Thought for {_time(done.seconds, 1)} · {count(done.tokens, 'token')}{unfinished}"


def speed_text(speed: float) -> str:
    """`1,234`, or `41.3`."""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:#.3g}"


def _time(seconds: float, digits: int) -> str:
    """`0.35 s`, or `4 ms`."""
    return f"{seconds:.{digits}f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_line(text: str, most: int) -> str:
    """Its first line, `most` characters of it at most; `…` tells that there is more."""
    text = text.strip()
    first = text.split("\n")[0][:most]
    return first + "…" * (len(text) > len(first))


def size_text(number: int) -> str:
    """Bytes as people write them: 6.1 MB, 214 GB."""
    return scaled_text(number, (" B", " kB", " MB", " GB", " TB"))


def scaled_text(number: int, units: Sequence[str]) -> str:
    """In the unit that suits it, each a thousand of the one before."""
    size, power = float(number), 0
    while size >= 1000 and power < len(units) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.{0 if size >= 100 or not power else 1}f}{units[power]}"


def bar(share: float, width: int) -> str:
    """`██████░░░░`, `width` cells wide."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)
