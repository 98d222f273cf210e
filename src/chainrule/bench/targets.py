"""The figures that this package is meant to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from chainrule.bench.clock import Spread
from chainrule.bench.job import Job
from chainrule.bench.machine import QUIET


@dataclass(frozen=True)
class Target:
    """A bound on a measured figure; it was set for the sizes in ``sizes``, two cores and a batch of 100.

    Args:
        what: what is measured; {d} stands for the hidden units that it was measured with.
        bound: the figure to reach.
        side: from which side.
        unit: what it is counted in.
        sizes: n and d.
    """

    what: str
    bound: float
    side: Literal["at least", "at most", "under"]
    unit: str
    sizes: tuple[int, int | None]

    def met(self, value: float) -> bool:
        if self.side == "at least":
            return value >= self.bound
        return value < self.bound if self.side == "under" else value <= self.bound


BATCH = 100
NADE, FVSBN = (784, 500), (784, None)
TARGETS = {
    "loop": Target("NADE-{d} training step against the per-pixel Python loop", 50, "at least", "×", NADE),
    "chunked": Target("NADE-{d} training step against chunked torch", 25, "at least", "×", NADE),
    "sampling": Target("NADE-{d} sampling against one forward pass over as many images", 2, "at most", "×", NADE),
    "passes": Target("FVSBN sampling a batch against n full forward passes", 100, "at least", "×", FVSBN),
    "memory": Target("NADE-{d} peak memory of training", 150, "under", "MB", NADE),
    "lightning": Target("FVSBN epoch through Lightning against a bare loop", 1.25, "at most", "×", FVSBN),
}


def judged(measured: Mapping[str, tuple[Job, Spread]], others: float | None = None) -> list[dict[str, Any]]:
    """A line per target that was measured.

    There is no verdict at other sizes than the target's, on a GPU, or where other processes took a share of the cores.
    """
    quiet = others is None or others < QUIET
    return [_line(TARGETS[key], *measured[key], quiet) for key in TARGETS if key in measured]


def _line(target: Target, job: Job, value: Spread, quiet: bool) -> dict[str, Any]:
    applies = quiet and (job.n, job.d, job.batch, job.device) == (*target.sizes, BATCH, "cpu")
    return {
        "what": target.what.format(d=job.d),
        "target": f"{target.side} {target.bound:g} {target.unit}",
        "measured": asdict(value),
        "unit": target.unit,
        "n": job.n,
        "d": job.d,
        "batch": job.batch,
        "met": target.met(value.median) if applies else None,
    }
