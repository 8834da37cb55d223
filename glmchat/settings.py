"""Settings of one run: defaults < config.toml < environment < flags.

The fields of `Settings` are the one table: each names its kind, its place in --help and its text.
`--name` is the flag, `name` the key of config.toml, `GLMCHAT_NAME` the variable.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import UsageError
from .kinds import LOADING, SAMPLING, SWITCH, Kind, choice, whole

TEXT = Kind("a text that is not empty", str, lambda v: isinstance(v, str) and v != "")
OVERFLOW = choice("drop-oldest", "error")
ON_OFF = choice("on", "off")
LENGTH, REPEATS = whole(1, 10_000_000), whole(1, 1000)
PATH = Kind("a path", os.path.expanduser, lambda v: isinstance(v, str) and v != "")


def _is_paths(value: Any) -> bool:
    parts = [value] if isinstance(value, str) else value
    return isinstance(parts, list | tuple) and all(isinstance(v, str) and v != "" for v in parts)


PATHS = Kind(
    "a path or a list of them",
    lambda text: tuple(os.path.expanduser(part) for part in text.split(os.pathsep) if part),
    _is_paths,
)
"""In a variable they stand as in PATH; the flag takes one and is repeated."""
NONE = "none"

_VARIABLE = "GLMCHAT_"
_NO_SETTINGS = ("CALL", "TEST_")
"""What else of ours begins so: the mark of a tool's processes, which may run glmchat again; the tests'."""

MODEL, ANSWER, SHOWN = "model", "answer", "what is shown"


def _setting(default: Any, kind: Kind, group: str, text: str, metavar: str = "", **more: Any) -> Any:
    about = {"kind": kind, "group": group, "help": text, "metavar": metavar, **more}
    return field(default=default, metadata=about, repr="env" not in more)  # a secret has its own variable


@dataclass(frozen=True, slots=True)
class Settings:
    """What the person asked for. None leaves the choice to the checkpoint or the program."""

    model: str | None = _setting(
        None, TEXT, MODEL, "demo, a hub name (zai-org/GLM-4.5-Air) or a folder", "MODEL"
    )
    revision: str | None = _setting(None, TEXT, MODEL, "branch, tag or commit on the hub", "REV")
    token: str | None = _setting(None, TEXT, MODEL, "hub token (rather: HF_TOKEN)", "TOKEN", env="HF_TOKEN")
    offline: bool = _setting(False, SWITCH, MODEL, "never touch the network")
    trust_remote_code: bool = _setting(False, SWITCH, MODEL, "run code that comes with the checkpoint")
    device_map: str = _setting(
        "auto", TEXT, MODEL, "auto, balanced, sequential, cpu, cuda:N, FILE.json", "MAP"
    )
    max_memory: str | None = _setting(None, TEXT, MODEL, "for example 0=70GiB,cpu=100GiB", "LIST")
    offload_dir: str | None = _setting(None, PATH, MODEL, "folder for weights that fit nowhere else", "DIR")
    dtype: str = _setting("auto", LOADING["dtype"], MODEL, "type of the weights")
    attn: str | None = _setting(None, TEXT, MODEL, "attention kernel: sdpa, eager, flash_attention_2", "NAME")
    speculate: str = _setting(
        "auto", LOADING["speculate"], MODEL, "guess tokens ahead, where it pays; never changes them"
    )
    compile: str = _setting(
        "auto", LOADING["compile"], MODEL, "compile the decode step; auto: on a GPU, where it pays"
    )
    parallel: str = _setting(
        "off", TEXT, MODEL, "split each layer over all GPUs, or N ranks", "off|tensor|tensor:N"
    )
    chat_template: str = _setting("auto", TEXT, MODEL, "auto, glm-4.5, glm-4.6, glm-4.7 or a FILE", "NAME")

    think: bool = _setting(True, SWITCH, ANSWER, "let the model think before it answers (default)")
    system: str | None = _setting(None, TEXT, ANSWER, "system message, or @FILE that holds it", "TEXT")
    tools: tuple[str, ...] = _setting(
        (), PATHS, ANSWER, "tool declarations, more than once if you like; none: no others", "FILE"
    )
    yes: bool = _setting(False, SWITCH, ANSWER, "run every tool without asking")
    allow: str | None = _setting(
        None, TEXT, ANSWER, "run these tools without asking: names, or server.*, with commas between", "NAMES"
    )
    max_tool_rounds: int = _setting(25, whole(1, 1000), ANSWER, "rounds of tool calls in one turn", "N")
    temperature: float | None = _setting(None, SAMPLING["temperature"], ANSWER, "0 to 2; 0 is greedy", "T")
    top_p: float | None = _setting(None, SAMPLING["top_p"], ANSWER, "nucleus sampling, up to 1", "P")
    top_k: int | None = _setting(None, SAMPLING["top_k"], ANSWER, "sample among the K likeliest", "K")
    max_tokens: int | None = _setting(None, SAMPLING["max_tokens"], ANSWER, "new tokens at most", "N")
    seed: int | None = _setting(None, SAMPLING["seed"], ANSWER, "make sampling repeatable", "N")
    greedy: bool = _setting(False, SAMPLING["greedy"], ANSWER, "always the likeliest token")
    overflow: str = _setting(
        "drop-oldest", OVERFLOW, ANSWER, "when the context is full: leave out the oldest turns, or stop"
    )

    markdown: str = _setting("on", ON_OFF, SHOWN, "in the conversation: draw Markdown, or show its source")
    show_thinking: bool = _setting(False, SWITCH, SHOWN, "do not hide thinking; in a pipe it goes to stderr")


def table() -> tuple[Field[Any], ...]:
    """Every setting, in the order of --help."""
    return fields(Settings)


def flag(name: str) -> str:
    """The option that sets a field: `top_p` → `--top-p`."""
    return "--" + name.replace("_", "-")


def nearest(word: str, names: Iterable[str], prefix: str = "") -> str:
    """`; did you mean X?` when a name begins with `word` or comes close to it, else nothing.

    `prefix` is what all of them begin with: it is said, and makes none of them closer.
    """
    names = list(names)
    close = [n for n in names if n.startswith(word)] or difflib.get_close_matches(
        word, names, n=1, cutoff=0.6
    )
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def default_config_path() -> Path:
    import platformdirs

    return Path(platformdirs.user_config_dir("glmchat", appauthor=False)) / "config.toml"


def state_folder() -> Path:
    """Where it is remembered what the person typed and decided."""
    import platformdirs

    return Path(platformdirs.user_state_dir("glmchat", appauthor=False))


def load_settings(
    flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ, config: str | None = None
) -> Settings:
    """Lay the sources over each other. `flags` holds only what was given on the command line.

    `config` (or GLMCHAT_CONFIG) names a file that must exist; the default one need not.
    Raises UsageError, one line that names the source, the key and what was expected.
    """
    named = config or environ.get("GLMCHAT_CONFIG")
    path = Path(os.path.expanduser(named)) if named else default_config_path()
    values = _from_file(path, must_exist=bool(named))
    values.update(_from_environ(environ))
    values.update(flags)
    return Settings(**values)


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A line for each variable that is spelled as ours are and sets nothing.

    Unlike a key of the file it is no fault: it may be meant for another version, or a script of the person's.
    """
    known = ["CONFIG", *(entry.name.upper() for entry in table())]
    lines = []
    for variable, text in environ.items():
        name = variable.removeprefix(_VARIABLE)
        if text and name != variable and name not in known and not name.startswith(_NO_SETTINGS):
            hint = nearest(name.upper(), known, _VARIABLE) or "."
            lines.append(f"The environment variable {variable} is unknown, and ignored{hint}")
    return lines


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for entry in table():
        for variable in (f"{_VARIABLE}{entry.name.upper()}", entry.metadata.get("env", "")):
            if text := environ.get(variable):
                try:
                    values[entry.name] = entry.metadata["kind"].read_text(text)
                except ValueError as e:
                    raise UsageError(f"The environment variable {variable} {e}.") from None
                break
    return values


def _from_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    known = {entry.name: entry.metadata["kind"] for entry in table()}
    values = {}
    for key, value in _read_toml(path, must_exist=must_exist).items():
        if key not in known:
            hint = nearest(key, known) or f"; known are {', '.join(known)}."
            raise UsageError(f"{path}: unknown key {key!r}{hint}")
        try:
            values[key] = known[key].read_value(value)
        except ValueError as e:
            raise UsageError(f"{path}: {key} {e}.") from None
        if known[key] is PATH:
            values[key] = _beside(path, values[key])
        elif known[key] is PATHS:
            names = [value] if isinstance(value, str) else value
            values[key] = tuple(name if name == NONE else _beside(path, name) for name in names)
        elif key == "system" and value.startswith("@"):
            values[key] = "@" + _beside(path, value[1:])
    return values


def _beside(config: Path, name: str) -> str:
    """A path that a config file names is relative to it, wherever the program was started."""
    return str(config.parent / os.path.expanduser(name))


def _read_toml(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if must_exist:
            raise UsageError(f"The config file {path} does not exist; create it or name another.") from None
        return {}
    except OSError as e:
        why = e.strerror or e
        raise UsageError(f"The config file {path} cannot be read: {why}; name another by --config.") from None
    # By name, because type checkers for one Python know only one of the two.
    toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return dict(toml.loads(data.decode("utf-8-sig")))
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: not UTF-8 at byte {e.start}; save it as UTF-8.") from None
    except toml.TOMLDecodeError as e:
        raise UsageError(f"{path}: not valid TOML: {e}.") from None
