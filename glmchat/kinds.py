"""What an option may be: on the command line, in config.toml, the environment, /params and the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting may be: how it is said in a message, read from text, and checked as a value."""

    expects: str
    parse: Callable[[str], Any]
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def read_text(self, text: str) -> Any:
        """The value that a flag or a variable spells. Raises ValueError that says what was expected."""
        try:
            value = self.parse(text)
        except ValueError:
            value = None
        if value is None or not self.accepts(value):
            raise ValueError(f"must be {self.expects}, not {text!r}")
        return value

    def read_value(self, value: Any) -> Any:
        """A typed value of config.toml, checked. Raises ValueError that says what was expected."""
        if not self.accepts(value):
            raise ValueError(f"must be {self.expects}, not {value!r}")
        return value


def number(low: float, high: float) -> Kind:
    def accepts(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    return Kind(f"a number from {low:g} to {high:g}", float, accepts)


def whole(low: int, high: int) -> Kind:
    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Kind(f"a whole number from {low} to {high}", int, accepts)


def choice(*names: str) -> Kind:
    return Kind(f"one of {', '.join(names)}", str, lambda v: isinstance(v, str) and v in names, names)


_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}

SWITCH = Kind("true or false", lambda text: _WORDS.get(text.lower()), lambda v: isinstance(v, bool))

LOADING: dict[str, Kind] = {
    "dtype": choice("auto", "bfloat16", "float16", "float32"),
    "speculate": choice("auto", "mtp", "lookup", "off"),
    "compile": choice("auto", "on", "off"),
}
"""How a model is loaded."""

SAMPLING: dict[str, Kind] = {
    "temperature": number(0, 2),
    "top_p": number(0.001, 1),
    "top_k": whole(1, 1_000_000),
    "max_tokens": whole(1, 10_000_000),
    "seed": whole(0, 2**63 - 1),
    "greedy": SWITCH,
}
"""How an answer is sampled."""
