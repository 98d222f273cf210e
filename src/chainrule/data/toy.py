"""Bars and stripes: a data set whose entropy is known exactly."""

from __future__ import annotations

import math

import numpy as np

from chainrule.data.cache import Bits
from chainrule.data.datamodule import Images, Splits
from chainrule.validate import number

TRAIN = 1000  # about as many training images
EVALUATION = 4  # times each pattern in validation and test


class Toy(Images):
    """All images whose rows are constant or whose columns are constant, each equally often.

    There are 2·2^side − 2 of them (all-off and all-on are both). Every split contains each the same number
    of times: no model has a lower NLL than :attr:`entropy`, and the true distribution has exactly it.

    Args:
        side: height and width in pixels, 2 to 8.
        **arguments: see :class:`~chainrule.data.Images`.

    Reference: D. MacKay, Information Theory, Inference, and Learning Algorithms (2003), section 43.
    """

    name = "toy"

    def __init__(self, *, side: int = 3, **arguments: str | int) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.shape = (number("data.side", side, int, 2, 8), side)

    @property
    def entropy(self) -> float:
        """ln(2^(side+1) − 2), in nats."""
        return math.log(2 ** (self.shape[0] + 1) - 2)

    def splits(self) -> Splits:
        each = patterns(self.shape[0])
        evaluation = np.tile(each, (EVALUATION, 1))
        return Splits(np.tile(each, (max(1, round(TRAIN / len(each))), 1)), evaluation, evaluation.copy())


def patterns(side: int) -> Bits:
    """The distinct bars and stripes, (2·2^side − 2, side²), in a fixed order."""
    codes = np.arange(2**side)[:, None] >> np.arange(side) & 1
    stripes = np.repeat(codes, side, axis=1)
    bars = np.tile(codes[1:-1], (1, side))
    return np.concatenate([stripes, bars]).astype(np.uint8)
