"""Numbers, values and paths as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

MOST = 20  # lines of one kind under a table


def printable(text: str) -> str:
    """One line without control characters, which a stranger's record may hold for a terminal to obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def short_path(path: Path) -> str:
    """Relative to the working directory where it lies below."""
    here = Path.cwd()
    return str(path.resolve().relative_to(here)) if path.resolve().is_relative_to(here) else str(path)


def capped(lines: Sequence[str]) -> list[str]:
    """The first lines, and how many more there are."""
    kind = lines[0].partition(":")[0] if lines else ""
    more = [f"{kind}: {len(lines) - MOST} more"] if len(lines) > MOST else []
    return [*lines[:MOST], *more]


def value_text(value: object) -> str:
    """A value of a configuration."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"{value_text(value[0])}, … ({len(value)} values)"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def nats(value: float, like: float | None = None) -> str:
    """Two digits after the point, three where the number (or the one it belongs to) is below ten."""
    return f"{value:.{_digits(value if like is None else like)}f}"


def with_error(value: float, stderr: float) -> str:
    """A number ± its standard error, to the same digit: to one that the error needs, up to the fourth."""
    small = math.isfinite(stderr) and stderr > 0
    digits = max(_digits(value), min(4, -math.floor(math.log10(stderr))) if small else 0)
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"


def _digits(value: float) -> int:
    return 3 if abs(value) < 10 else 2


def three_digits(value: float | None) -> str:
    """About three significant digits, large numbers in full; nothing for what is not known."""
    if value is None:
        return ""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
