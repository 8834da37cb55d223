"""The commands of the chat, in one table; /help, completion, the README and the nearest-name hint read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from ..chat import Chat
from ..engine.base import ModelInfo
from ..errors import GlmChatError, UsageError
from ..events import ToolDone, TurnDone
from ..settings import default_config_path, nearest
from .attach import attach, read_block
from .clipboard import code_blocks, copy
from .params import PARAMETERS, describe_parameters, set_parameter
from .wording import bar, call_text, count, first_line, outcome_text, size_text, stats_text


class Host(Protocol):
    """What a command may do to the chat it is typed into."""

    chat: Chat
    turns: list[TurnDone]
    """What was answered since the program started, the newest last."""
    calls: list[tuple[datetime, ToolDone]]
    """What came of each call, and when."""

    @property
    def info(self) -> ModelInfo | None:
        """The model, or None while it loads."""

    def load_model(self, name: str) -> None:
        """Put another model in place of this one; the conversation stays."""

    def say(self, text: str) -> None:
        """Print one or more lines."""

    def ask(self, text: str) -> None:
        """Send text as the person's next message."""

    def draft(self, text: str) -> None:
        """Put text into the input line, to be worked on."""

    def unfold(self, shown: bool) -> None:
        """Open or fold all thoughts."""

    def quit(self) -> None:
        """End the chat."""


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    arguments: str
    help: str
    run: Callable[[Host, str], None]
    choices: tuple[str, ...] = ()
    """What its first argument may be, for completion."""
    takes_path: bool = False
    waits: bool = False
    """It is not for while a turn runs or the model loads, and waits for its end."""


def is_command(text: str) -> bool:
    """Whether a line is meant as a command: `/word …`; a space before it makes it text."""
    return re.match(r"/[A-Za-z?]*(\s|$)", text) is not None


def find_command(text: str) -> Command | None:
    """The command that a line begins with."""
    name = text.split(maxsplit=1)[0]
    return next((command for command in COMMANDS if command.name == name), None)


def run_command(host: Host, text: str) -> None:
    """Run one command; an unknown name is answered with the nearest one, a fault with its message."""
    name, argument = re.match(r"(\S+)\s*(.*)", text.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    command = find_command(name)
    if command is not None and argument and not command.arguments:
        return host.say(f"{name} takes nothing behind it. (To send it as text, put a space before it.)")
    if command is not None:
        try:
            return command.run(host, argument)
        except GlmChatError as e:
            return host.say(str(e))
    hint = nearest(name, [c.name for c in COMMANDS]) or "; /help lists the commands."
    return host.say(f"Unknown command {name}{hint} (To send it as text, put a space before it.)")


def _help(host: Host, argument: str) -> None:
    rows = [(f"{c.name} {c.arguments}".strip(), c.help) for c in COMMANDS]
    rows += [(key, text) for key, text in KEYS]
    width = max(len(left) for left, _ in rows)
    host.say("\n".join(f"{left:<{width}}  {right}" for left, right in rows))


def _think(host: Host, argument: str) -> None:
    if argument in ("show", "hide"):
        return host.unfold(argument == "show")
    options = host.chat.options
    if argument and argument not in ("on", "off"):
        return host.say(f"/think takes on, off, show or hide, not {argument!r}.")
    thinks = argument == "on" if argument else not options.enable_thinking
    host.chat.options = replace(options, enable_thinking=thinks)
    blind = host.info is not None and not host.info.thinks
    note = " (this model's template has no such switch)" if blind else ""
    return host.say(f"Thinking is {'on' if thinks else 'off'}{note}.")


def _tools(host: Host, argument: str) -> None:
    toolbox = host.chat.toolbox
    match argument.split():
        case []:
            return host.say(_tools_text(host.chat))
        case ["on" | "off" as state, *names] if names:
            for name in names:
                toolbox.switch(name, state == "on")
            return host.say(f"{', '.join(names)}: {state}.")
        case ["reload"]:
            toolbox.reload()
            return host.say(f"{count(len(toolbox.tools), 'tool')}, read anew.")
        case ["log"]:
            lines = [f"{at:%H:%M:%S}  {call_text(d.call)} {outcome_text(d)}" for at, d in host.calls]
            return host.say("\n".join(lines) or "No tool was called yet.")
    return host.say(f"/tools takes on NAME, off NAME, reload or log, not {argument!r}.")


def _tools_text(chat: Chat) -> str:
    """A line a tool: what it takes, what happens to its calls, where it comes from, what it is for."""
    starting = chat.toolbox.starting
    awaited = [f"Waiting for MCP: {', '.join(starting)}"] if starting else []
    if not chat.toolbox.tools:
        return "".join(awaited) or (
            "No tools. glmchat tools init writes some to begin with; glmchat --tools FILE brings them, or "
            f"{default_config_path().parent / 'tools.json'} always."
        )
    rows = []
    for tool in chat.toolbox.tools:
        names = ", ".join(tool.parameters.get("properties") or {})
        state = "off" if tool.name in chat.toolbox.off else chat.approvals.state(tool)
        about = first_line(tool.description, 60)
        rows.append((f"{tool.name}({names})", state, tool.source, about))
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    told = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join(told + awaited)


def _model(host: Host, argument: str) -> None:
    if argument:
        return host.load_model(argument)
    info = host.info
    if info is None:
        return host.say("The model is still loading.")
    parts = [
        info.name,
        f"{info.parameters / 1e6:,.1f}M parameters" if info.parameters else "",
        " ".join(part for part in (info.dtype, f"on {info.device}" if info.device else "") if part),
        f"context of {info.context_length:,} tokens" if info.context_length else "",
        f"loaded in {info.load_s:.1f} s" if info.load_s else "",
    ]
    return host.say(", ".join(part for part in parts if part))


def _params(host: Host, argument: str) -> None:
    if argument:
        host.chat.options = set_parameter(host.chat.options, argument)
    host.say(describe_parameters(host.chat.options))
    if host.info is not None and host.info.not_followed:
        names = ", ".join(host.info.not_followed)
        host.say(f"Not followed from the checkpoint's generation_config.json: {names}.")


def _system(host: Host, argument: str) -> None:
    conversation = host.chat.conversation
    if argument == "off":
        conversation.set_system(None)
        return host.say("No system message.")
    if argument:
        named = argument.startswith("@")
        text = read_block(argument[1:].strip("\"'")).text.rstrip("\n") if named else argument
        conversation.set_system(text)
        return host.say("The system message is set.")
    first = conversation.messages[:1]
    return host.say(first[0].content if first and first[0].role == "system" else "No system message.")


def _file(host: Host, argument: str) -> None:
    if not argument:
        return host.say("Which file? /file PATH attaches it to your next message, as @PATH does within one.")
    block = read_block(argument.strip("\"'"))
    if '"' in block.path:
        raise UsageError(f"{block.path} cannot stand in a message, for the quotation mark; rename it.")
    named = f'@"{block.path}"' if re.search(r"\s", block.path) else f"@{block.path}"
    host.draft(f"{named} ")
    return host.say(f"{block.path}: {size_text(len(block.text.encode()))}, goes with the message below.")


def _taken_back(host: Host, purpose: str) -> str:
    """The last question, taken back with all that came of it. Raises UsageError when there is none."""
    text = host.chat.undo()
    if text is None:
        raise UsageError(f"Nothing to {purpose}.")
    return text


def _retry(host: Host, argument: str) -> None:
    host.ask(_taken_back(host, "try again"))


def _undo(host: Host, argument: str) -> None:
    host.say(f"Taken back: {first_line(_taken_back(host, 'take back'), 60)}")


def _edit(host: Host, argument: str) -> None:
    host.draft(_taken_back(host, "edit"))


def _copy(host: Host, argument: str) -> None:
    answer = next((m.content for m in reversed(host.chat.conversation.messages) if m.role == "assistant"), "")
    if not answer:
        return host.say("No answer to copy yet.")
    if not argument:
        return host.say(f"{copy(answer)}: the answer, {count(len(answer), 'character')}.")
    blocks = code_blocks(answer)
    number = int(argument) if re.fullmatch(r"\d{1,9}", argument) else 0
    if not 1 <= number <= len(blocks):
        asked = first_line(argument, 20)
        return host.say(f"No code block {asked}: the answer has {count(len(blocks), 'code block')}.")
    code = blocks[number - 1]
    return host.say(f"{copy(code)}: code block {argument}, {count(code.count(chr(10)), 'line')}.")


def _stats(host: Host, argument: str) -> None:
    if not host.turns:
        return host.say("No answer yet.")
    usages = [turn.usage for turn in host.turns]
    seconds = sum(turn.timing.total_s for turn in host.turns)
    read, kept = sum(u.prompt_tokens for u in usages), sum(u.cached_tokens for u in usages)
    written, thought = sum(u.completion_tokens for u in usages), sum(u.reasoning_tokens for u in usages)
    rows = [
        ("newest answer", stats_text(host.turns[-1])),
        ("so far", f"{count(len(usages), 'answer')} in {seconds:.1f} s"),
        ("", f"{count(written, 'token')} written, {thought:,} of them in thoughts"),
        ("", f"{count(read, 'token')} read, {kept:,} of them from the KV cache"),
    ]
    return host.say("\n".join(f"{left:<15}{right}" for left, right in rows))


def _context(host: Host, argument: str) -> None:
    prompt = host.chat.render()
    if prompt is None or host.info is None:
        return host.say("The server does not tell how much of its context is used.")
    used, whole = len(prompt.ids), host.info.context_length
    if not whole:
        return host.say(f"{count(used, 'token')}; the model states no limit.")
    return host.say(f"{bar(used / whole, 30)} {used:,} of {whole:,} tokens, {used / whole:.0%}")


def _prompt(host: Host, argument: str) -> None:
    prompt = host.chat.render(attach(argument) if argument else None)
    if prompt is None:
        return host.say("The server renders the prompt; it cannot be seen from here.")
    return host.say(f"{prompt.text}\n\n{count(len(prompt.ids), 'token')}")


def _clear(host: Host, argument: str) -> None:
    host.chat.clear()
    host.say("A new conversation; the old one is forgotten.")


def _quit(host: Host, argument: str) -> None:
    host.quit()


COMMANDS = (
    Command("/help", "", "show this", _help),
    Command(
        "/think",
        "[on|off|show|hide]",
        "switch thinking; open or fold all thoughts and calls",
        _think,
        ("on", "off", "show", "hide"),
    ),
    Command(
        "/tools",
        "[on|off NAME|reload|log]",
        "list the tools; switch one; read the files anew; what was called",
        _tools,
        ("on", "off", "reload", "log"),
    ),
    Command(
        "/model", "[NAME]", "show the model, or load another; the conversation stays", _model, waits=True
    ),
    Command(
        "/params", "[NAME VALUE]", "show how answers are sampled, or change it", _params, tuple(PARAMETERS)
    ),
    Command(
        "/system", "[TEXT|@FILE|off]", "show, set or remove the system message", _system, ("off",), waits=True
    ),
    Command(
        "/file", "PATH", "attach a text file to the next message; so does @PATH in it", _file, takes_path=True
    ),
    Command("/retry", "", "ask the last question again", _retry, waits=True),
    Command("/undo", "", "take back the last question and its answer", _undo, waits=True),
    Command("/edit", "", "take back the last question into the input line", _edit, waits=True),
    Command("/copy", "[N]", "copy the last answer, or its N-th code block", _copy),
    Command("/stats", "", "tokens, speed and time so far", _stats),
    Command("/context", "", "how full the context is", _context, waits=True),
    Command(
        "/prompt",
        "[TEXT]",
        "the exact text that the model sees, or would see with TEXT asked",
        _prompt,
        waits=True,
    ),
    Command("/clear", "", "start a new conversation", _clear, waits=True),
    Command("/quit", "", "leave", _quit),
)

KEYS = (
    ("Enter", "send; while an answer comes the message is queued"),
    ("Alt-Enter, Ctrl-J", "new line; so does Shift-Enter where the terminal tells it from Enter"),
    ("Up, Down, Ctrl-R", "earlier messages; search them"),
    ("Tab", "complete a command, its argument, or a path after @"),
    ("Ctrl-X Ctrl-E", "write the message in $EDITOR"),
    ("Ctrl-T", "open or fold all thoughts and calls, also while an answer comes"),
    ("Ctrl-C", "stop an answer; clear the line; twice on an empty line: leave"),
    ("Esc", "stop an answer; take the newest queued message back"),
    ("Ctrl-L", "clear the screen"),
    ("Ctrl-Z", "suspend; fg comes back"),
    ("Ctrl-D", "leave, on an empty line"),
)


def matching(word: str) -> Sequence[Command]:
    """The commands whose name begins so."""
    return [command for command in COMMANDS if command.name.startswith(word)]
