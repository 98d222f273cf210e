"""The least time that a training step could take on this machine, by the roofline model.

Williams, Waterman & Patterson, *Roofline: an insightful visual performance model*, CACM 2009: a step takes no less than
its operations over the speed of a large matrix product, and no less than its memory traffic over the speed of a large
copy. Operations are those of the matrix products and convolutions, as torch counts them; the traffic is that of
parameters, gradients and the two moments of Adam. Other work is not counted, so the bound is a lower one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from chainrule.bench.timing import Action, Timer, quartiles

FLOAT = 4  # bytes
TRAFFIC = 10 * FLOAT  # of a parameter: read twice, gradient out and in; the update reads three and writes three
MATRIX = 2048  # side of the product
COPY = 1 << 26  # floats, 256 MB: far more than caches hold


@dataclass(frozen=True)
class Ceiling:
    """What this machine reaches per second: operations in a large product, bytes in a large copy."""

    flops: float
    bytes: float

    def seconds(self, flops: int, parameters: int) -> float:
        """The bound on a training step."""
        return max(flops / self.flops, TRAFFIC * parameters / self.bytes)


@torch.no_grad()
def measure_ceiling(timer: Timer) -> Ceiling:
    a, b = torch.randn(2, MATRIX, MATRIX, device=timer.device)
    product = torch.empty_like(a)
    source, target = torch.ones(COPY, device=timer.device), torch.zeros(COPY, device=timer.device)
    seconds = timer.alternate({"flops": lambda: torch.mm(a, b, out=product), "bytes": lambda: target.copy_(source)})
    return Ceiling(
        flops=2 * MATRIX**3 / quartiles(seconds["flops"])["median"],
        bytes=2 * FLOAT * COPY / quartiles(seconds["bytes"])["median"],
    )


def count_flops(action: Action) -> int:
    """Operations of the matrix products and convolutions of one call; those of a compiled kernel are not seen."""
    with FlopCounterMode(display=False) as counter:
        action()
    return int(counter.get_total_flops())
