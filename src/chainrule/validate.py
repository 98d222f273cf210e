"""Is this argument in its range? One check for every configuration and every constructor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

Value = TypeVar("Value")


def number(name: str, value: Value, kind: type = float, low: float = -math.inf, high: float = math.inf) -> Value:
    """Returns ``value`` if it is a number of a kind, ``int`` or ``float``, from ``low`` to ``high``.

    Raises:
        ValueError: it is anything else; the message names the argument, its value and its range.
    """
    is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not (is_number and low <= value <= high):  # type: ignore[operator]
        what = "a whole number" if kind is int else "a number"
        bounds = f"from {low:,.12g} to {high:,.12g}" if high < math.inf else f"of at least {low:,.12g}"
        raise ValueError(f"{name} must be {what} {bounds}, got {value!r}")
    return value


def choice(name: str, value: Value, choices: Sequence[Value]) -> Value:
    """Returns ``value`` if it is one of ``choices``.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(str, choices))}, got {value!r}")
    return value
