"""The sums that may stand in a configuration value, as ``$[2 * 3 + 1, int]``.

Numbers, ``+ - * / ^``, brackets, and the functions log, exp, sin, cos and sqrt.  As in RASR
``^`` binds tighter than a sign and groups to the right.
"""

from __future__ import annotations

import math
import re

__all__ = ["evaluate"]

_FUNCTIONS = {
    "log": math.log,
    "exp": math.exp,
    "sin": math.sin,
    "cos": math.cos,
    "sqrt": math.sqrt,
}
_TOKEN = re.compile(r"\s*(?:((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|([a-z]+)|(.))")


def evaluate(text: str) -> float:
    """Computes an arithmetic expression.

    Args:
        text: e.g. ``"2 ^ 3 - sqrt(4)"``.

    Returns:
        Its value.

    Raises:
        ValueError: if it cannot be parsed, or a function has no value there.
        ArithmeticError: division by zero, overflow.
    """
    tokens = [(m.group(1), m.group(2), m.group(3)) for m in _TOKEN.finditer(text.rstrip())]
    value, rest = _sum(tokens)
    if rest:
        raise ValueError(f"cannot read {text.strip()!r} as an arithmetic expression")
    return value


def _symbol(tokens) -> str:
    return tokens[0][2] or "" if tokens else ""


def _sum(tokens):
    value, tokens = _product(tokens)
    while _symbol(tokens) in ("+", "-"):
        sign = _symbol(tokens)
        other, tokens = _product(tokens[1:])
        value = value + other if sign == "+" else value - other
    return value, tokens


def _product(tokens):
    value, tokens = _signed(tokens)
    while _symbol(tokens) in ("*", "/"):
        sign = _symbol(tokens)
        other, tokens = _signed(tokens[1:])
        value = value * other if sign == "*" else value / other
    return value, tokens


def _signed(tokens):
    if _symbol(tokens) == "-":
        value, tokens = _signed(tokens[1:])
        return -value, tokens
    return _power(tokens)


def _power(tokens):
    value, tokens = _atom(tokens)
    if _symbol(tokens) == "^":
        exponent, tokens = _signed(tokens[1:])
        value = math.pow(value, exponent)
    return value, tokens


def _atom(tokens):
    if not tokens:
        raise ValueError("the arithmetic expression ends too early")
    number, name, symbol = tokens[0]
    if number:
        return float(number), tokens[1:]
    if name:
        if name not in _FUNCTIONS or _symbol(tokens[1:]) != "(":
            raise ValueError(f"unknown function {name!r}; known are {', '.join(_FUNCTIONS)}")
        value, tokens = _bracket(tokens[1:])
        return _FUNCTIONS[name](value), tokens
    if symbol == "(":
        return _bracket(tokens)
    raise ValueError(f"unexpected {symbol!r} in an arithmetic expression")


def _bracket(tokens):
    value, tokens = _sum(tokens[1:])
    if _symbol(tokens) != ")":
        raise ValueError("a bracket is not closed in an arithmetic expression")
    return value, tokens[1:]
