"""What the text says of the models' parameters: n pixels, d hidden units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Formula:
    """A number of parameters, exactly, and how the text says that it grows; functions of (n, d)."""

    text: str
    count: Callable[[int, int], int]
    order: str
    leading: Callable[[int, int], int]  # what the order stands for


FORMULAS = {
    "tabular": Formula("2ⁿ − 1", lambda n, d: 2**n - 1, "2ⁿ", lambda n, d: 2**n),
    "fvsbn": Formula("n(n+1)/2", lambda n, d: n * (n + 1) // 2, "n²", lambda n, d: n**2),
    "mlp": Formula(
        "d·n(n−1)/2 + n(2d+1)", lambda n, d: d * n * (n - 1) // 2 + n * (2 * d + 1), "n²d", lambda n, d: n**2 * d
    ),
    "nade": Formula("nd + d + nd + n", lambda n, d: 2 * n * d + d + n, "nd", lambda n, d: n * d),
}


def largest_nade(n: int) -> int:
    """The d up to which NADE has fewer parameters than FVSBN, about n/4."""
    return (FORMULAS["fvsbn"].count(n, 0) - n - 1) // (2 * n + 1)
