"""calculate: arithmetic that is read as a tree and computed node by node, with a bound on every step."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

from glmchat.tools.argv import Refused

from .text import clean, shown

Number: TypeAlias = "int | float"

_LONGEST = 2000
_DEEPEST = 400
_MOST_BITS = 10_000
"""About 3,000 digits: still printed at once, and far beyond what anybody reads."""
_LARGEST_FACTORIAL = 1000
_MOST_PLACES = 400

_SPELLINGS = str.maketrans({"×": "*", "÷": "/", "−": "-", "^": "**"})
_CONSTANTS = {"pi": math.pi, "e": math.e}


def calculate(expression: str) -> str:
    """The value: whole numbers exactly, others with 15 digits."""
    text = clean("expression", expression).translate(_SPELLINGS).strip()
    if len(text) > _LONGEST:
        raise Refused(f"expression is longer than {_LONGEST:,} characters; calculate it in parts")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's hints on odd spellings are for its programmers
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        raise Refused(
            f"{shown(expression)} cannot be read as arithmetic; write it like 2 * (3 + 4) ^ 2 / sqrt(5)"
        ) from None
    except (MemoryError, RecursionError):
        raise _too_deep() from None
    try:
        return _told(_value(tree, 0))
    except ZeroDivisionError:
        raise Refused("division by zero; there is no result") from None
    except OverflowError:
        raise _too_large() from None


def _told(value: Number) -> str:
    if isinstance(value, int):
        return str(value)
    return format(value + 0.0, ".15g")  # with + 0.0 there is no -0


def _value(node: ast.expr, depth: int) -> Number:
    if depth > _DEEPEST:
        raise _too_deep()
    match node:
        case ast.Constant(value=value) if type(value) in (int, float):
            result: Any = value
        case ast.Name(id=name) if name in _CONSTANTS:
            result = _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
            inner = _value(operand, depth + 1)
            result = -inner if isinstance(op, ast.USub) else inner
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            result = _OPERATORS[type(op)](_value(left, depth + 1), _value(right, depth + 1))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            result = _called(name, [_value(arg, depth + 1) for arg in args])
        case _:
            raise Refused(_why_not(node))
    return _bounded(result)


def _why_not(node: ast.expr) -> str:
    if isinstance(node, ast.Tuple):
        return "commas do not group digits; write 1234567 and not 1,234,567"
    named = node.func if isinstance(node, ast.Call) else node
    part = shown(named.id, 60) if isinstance(named, ast.Name) else "a part of the expression"
    known = ", ".join(_FUNCTIONS)
    return f"{part} cannot be calculated; there are numbers, + - * / // % ^, pi, e and the functions {known}"


def _bounded(value: Any) -> Number:
    if isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            raise _too_large()
        return value
    if not isinstance(value, float):
        raise Refused("the result is no real number, as for the root of a negative one")
    if not math.isfinite(value):
        raise _too_large()
    return value


def _called(name: str, values: list[Number]) -> Any:
    try:
        return _FUNCTIONS[name](*values)
    except Refused:
        raise
    except TypeError:
        raise Refused(f"{name} does not take {len(values)} values of this kind; give it others") from None
    except ValueError:
        raise Refused(f"{name} is not defined for {', '.join(map(_told, values))}") from None


def _divided(a: Number, b: Number) -> Number:
    """As a whole number where it is one, since a float would lose digits."""
    if isinstance(a, int) and isinstance(b, int) and a % b == 0:
        return a // b
    return a / b


def _power(a: Number, b: Number) -> Any:
    if isinstance(a, int) and isinstance(b, int) and abs(a) > 1 and b * a.bit_length() > 2 * _MOST_BITS:
        raise _too_large()
    return a**b


def _factorial(n: Number) -> int:
    if not isinstance(n, int) or not 0 <= n <= _LARGEST_FACTORIAL:
        raise Refused(f"factorial takes whole numbers from 0 to {_LARGEST_FACTORIAL:,}")
    return math.factorial(n)


def _rounded(value: Number, places: Number | None = None) -> Number:
    if places is None:
        return round(value)
    if not isinstance(places, int) or abs(places) > _MOST_PLACES:
        raise Refused(f"round takes a whole number of places, at most {_MOST_PLACES}")
    return round(value, places)


def _too_large() -> Refused:
    return Refused("the result is too large; there is room for about 3,000 digits, or 1e308 with a fraction")


def _too_deep() -> Refused:
    return Refused("expression is nested too deeply; calculate it in parts")


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divided,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt,
    "abs": abs,
    "round": _rounded,
    "min": min,
    "max": max,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "exp": math.exp,
    "floor": math.floor,
    "ceil": math.ceil,
    "factorial": _factorial,
}
