"""The door: options and config become Settings, and one front end runs with them.

Nothing heavy is imported before it is known what to do; --help and --version pay for argparse alone.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from . import settings as st
from .errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_TERMINATED, GlmChatError, UsageError
from .kinds import SWITCH, Kind

try:
    from .terminal.tty import ending_signals
except ModuleNotFoundError as e:  # termios, on Windows
    sys.exit(f"glmchat: This system has no {e.name}; glmchat runs on Linux and macOS, on Windows in WSL.")

if TYPE_CHECKING:
    from .engine.base import Engine

EXIT_PIPE = 141  # 128 + SIGPIPE, what a shell reports of any program whose reader went away

_USAGE = "glmchat [options] [--] [prompt]"
_ABOUT = "Chat with GLM-4.5 and its kin: a conversation in the terminal, or one answer to a prompt or a pipe."
_ABOUT_BENCH = "How fast the model is on this machine: prefill, decode, time to first token, memory."
_NO_SUCH_OPTION = {
    "glmchat": "; put -- before a prompt that begins so.",
    "glmchat bench": "; see glmchat bench --help.",
}
_EXAMPLES = """\
examples:
  glmchat                                          a conversation in the terminal
  glmchat --model zai-org/GLM-4.5-Air --no-think   the same, with a real model
  glmchat -- "one question"                        the answer on stdout
  cat notes.txt | glmchat "summarise"              stdin is context before the question
  glmchat --json "hi" | jq .message.content        for programs
  glmchat bench --model zai-org/GLM-4.5-Air        how fast it is on this machine
  glmchat tools init                               tool declarations to begin with
  glmchat tools check tools.json                   what is wrong with them, and where

Most options may stand in config.toml (max_tokens = 500) or the environment (GLMCHAT_MAX_TOKENS).
exit codes: 0 answer, 1 error, 2 usage, 3 model cannot be loaded, 4 server (kept for later),
  5 stopped by the limit of tokens or tool rounds, or a full context, 130 interrupted,
  141 reader of the pipe went away, 143 ended by SIGTERM or as the terminal was closed
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.")


class _Help(argparse.Action):
    """As argparse's own, which keeps it to itself when the text cannot be written."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(parser.format_help(), end="", flush=True)
        parser.exit()


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"glmchat {version('glmchat')}")
        except PackageNotFoundError:
            print("glmchat (run from its source, not installed)")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run glmchat with these arguments and return its exit code."""
    for number in ending_signals():
        signal.signal(number, _terminated)
    _make_writable()
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return _run(words)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            _flush()
        return EXIT_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as e:  # of --version, say, where the disk is full
        return _report(e)
    finally:
        if argv is None:  # the program ends: spare it a last collection through all that torch brought
            gc.freeze()


def _flush() -> None:
    """Write what is still buffered. Where that fails it would fail again at exit, with a traceback: let
    the rest go nowhere."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _help_format(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100)


def build_parser() -> argparse.ArgumentParser:
    """The options: one for each field of Settings, and those that only make sense for one run."""
    parser = _Parser(
        prog="glmchat",
        usage=_USAGE,
        description=_ABOUT,
        epilog=_EXAMPLES,
        allow_abbrev=False,
        add_help=False,
        formatter_class=_help_format,
    )
    parser.add_argument("prompt", nargs="?", help=argparse.SUPPRESS)
    shown = _add_settings(parser, st.MODEL, st.ANSWER, st.SHOWN)[-1]
    form = shown.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object: message, usage, timing …")
    form.add_argument("--stream-json", action="store_true", help="one JSON event a line")
    form.add_argument(
        "--print-prompt", action="store_true", help="what the model would see; loads no weights"
    )

    other = _add_others(parser)
    other.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    other.add_argument("-h", "--help", action=_Help, nargs=0, help="print this and leave")
    return parser


def build_bench_parser() -> argparse.ArgumentParser:
    """The options of `glmchat bench`: those that choose, place and load the model, and its own."""
    parser = _Parser(
        prog="glmchat bench",
        usage="glmchat bench [options]",
        description=_ABOUT_BENCH,
        allow_abbrev=False,
        add_help=False,
        formatter_class=_help_format,
    )
    own = parser.add_argument_group("what is measured")
    own.add_argument(
        "--lengths",
        type=_lengths,
        default=(),
        metavar="N,N",
        help="tokens of context (128,1024,4096,8192, as far as the model's context allows)",
    )
    own.add_argument(
        "--repeats", type=_argument(st.REPEATS), default=3, metavar="N", help="of each measurement (3)"
    )
    own.add_argument("--json", action="store_true", help="one JSON object, sizes in bytes")
    _add_settings(parser, st.MODEL)
    other = _add_others(parser)
    other.add_argument("-h", "--help", action=_Help, nargs=0, help="print this and leave")
    return parser


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(_argument(st.LENGTH)(part.strip()) for part in text.split(","))


def _add_settings(parser: argparse.ArgumentParser, *names: str) -> list[argparse._ArgumentGroup]:
    """Add the settings of these groups, in the order of the table."""
    groups = {name: parser.add_argument_group(name) for name in names}
    for entry in st.table():
        if (group := groups.get(entry.metadata["group"])) is not None:
            _add_setting(group, entry.name, entry.default, entry.metadata)
    return list(groups.values())


def _add_others(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    other = parser.add_argument_group("other")
    other.add_argument("--config", metavar="FILE", help="read this in place of the usual config.toml")
    other.add_argument("--debug", action="store_true", help="show tracebacks")
    return other


def _add_setting(group: argparse._ArgumentGroup, name: str, default: Any, about: Any) -> None:
    flag, kind = st.flag(name), about["kind"]
    if kind is SWITCH:
        off = flag.replace("--", "--no-", 1)
        common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
        group.add_argument(flag, action="store_true", help=about["help"], **common)
        text = "answer at once" if default else argparse.SUPPRESS  # the default's opposite is worth a line
        group.add_argument(off, action="store_false", help=text, **common)
        return
    group.add_argument(
        flag,
        action="append" if kind is st.PATHS else "store",
        type=_argument(st.PATH if kind is st.PATHS else kind),
        default=argparse.SUPPRESS,
        metavar="|".join(kind.choices) or about["metavar"],
        help=about["help"],
    )


def _argument(kind: Kind) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind.read_text(text)
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e)) from None

    return read


def _run(words: list[str]) -> int:
    try:
        if words[:1] == ["tools"]:
            from .terminal import declarations

            return declarations.run(words[1:])
        if words[:1] == ["bench"]:
            return _run_with(_bench, _parse(build_bench_parser(), words[1:]))
        return _run_with(_dispatch, _parse(build_parser(), words))
    except UsageError as e:
        return _report(e)


def _run_with(front_end: Callable[[st.Settings, argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run it with the settings of this run; any fault ends in one line."""
    stream_json = getattr(args, "stream_json", False)
    try:
        _require_folder()
        for line in st.unknown_variables():
            _say(line)
        flags = {entry.name: getattr(args, entry.name) for entry in st.table() if hasattr(args, entry.name)}
        code = front_end(st.load_settings(flags, config=args.config), args)
        _flush()
        return code
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as e:
        if args.debug:
            import traceback

            traceback.print_exc()
        if args.json or stream_json:
            from .terminal import jsonl

            with contextlib.suppress(OSError):  # stdout itself may be what failed
                jsonl.write_error(e, stream=stream_json)
        with contextlib.suppress(OSError):
            _flush()
        return _report(e)


def _require_folder() -> None:
    """Raises UsageError where the folder that it is run in was removed, which MKL does not survive."""
    try:
        os.getcwd()
    except OSError:
        raise UsageError("The folder you are in was removed; go to another one first.") from None


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    args, rest = parser.parse_known_args(words)
    for word in rest:
        if word.startswith("-"):
            known = [s for action in parser._actions for s in action.option_strings]
            hint = st.nearest(word.partition("=")[0], known) or _NO_SUCH_OPTION[parser.prog]
            raise UsageError(f"Unknown option {word}{hint}")
        if parser.prog == "glmchat bench":
            raise UsageError(f"{parser.prog} takes no prompt: {word!r}. To ask it: glmchat -- 'bench …'.")
        raise UsageError(f"One prompt, please: {word!r} is a second one. Put quotes around the whole prompt.")
    return args


def _bench(settings: st.Settings, args: argparse.Namespace) -> int:
    from .terminal import bench

    return bench.run(settings, args.lengths, args.repeats, as_json=args.json)


def _make_writable() -> None:
    """Whatever stdout and stderr are, text can be written to them."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # it was closed: lives as long as the program
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a character the locale lacks must not end an answer


def _dispatch(settings: st.Settings, args: argparse.Namespace) -> int:
    plain = not (args.json or args.stream_json or args.print_prompt)
    talks = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if args.prompt is None and talks and plain:
        return _talk(settings)

    from .terminal import start, stdin, trusting
    from .terminal.progress import LoadState, wait_with_bar

    prompt, load = stdin.compose(args.prompt), LoadState()
    trusting.warn(settings)
    if args.print_prompt:
        return start.print_prompt(settings, prompt)
    with start.open_chat(settings, load) as chat:
        wait_with_bar(chat.engine, load)
        if plain:
            from .terminal import plain as pipe

            return pipe.run(chat, prompt, show_thinking=settings.show_thinking)
        from .terminal import jsonl

        return jsonl.run(chat, prompt, stream=args.stream_json)


def _talk(settings: st.Settings) -> int:
    """The conversation, until the person leaves or closes the terminal."""
    try:
        code = _converse(settings)
        _flush()
        return code
    except OSError as e:
        if e.errno != errno.EIO:
            raise
    with contextlib.suppress(OSError):
        _flush()
    return EXIT_TERMINATED


def _converse(settings: st.Settings) -> int:
    from .terminal import early

    with early.stand(thinks=settings.think) as standing:
        from .terminal import repl, start, trusting
        from .terminal.progress import LoadState
        from .terminal.screen import Looks

        trusting.ask(settings)
        load = LoadState()
        looks = Looks(unfolded=settings.show_thinking, markdown=settings.markdown == "on")
        with start.open_chat(settings, load, apart=True) as chat:

            def open_engine(model: str) -> Engine:
                return start.open_engine(settings, model, load, apart=True)

            return repl.run(chat, load, open_engine, looks, standing)


def _report(error: Exception) -> int:
    if isinstance(error, GlmChatError):
        text, code = str(error), error.exit_code
    elif isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        text, code = f"{error.strerror or error}{where}.", EXIT_ERROR
    else:
        text = f"internal error, {type(error).__name__}: {error}. --debug shows where."
        code = EXIT_ERROR
    _say(text)
    return code


def _say(text: str) -> None:
    from .terminal.say import say

    say(text)


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)  # unwinds, so that every terminal setting is put back
