"""Timing on a machine that others use, too: warm up, take turns, report medians and quartiles."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Action = Callable[[], object]
Values = NDArray[np.float64]


def quartiles(values: Values) -> dict[str, float]:
    """The median and the quartiles around it."""
    low, median, high = map(float, np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "low": low, "high": high}


@dataclass(frozen=True)
class Timer:
    """Measures in rounds.

    Args:
        rounds: values for each action; a median needs a few.
        seconds: time for one action, all rounds together, as far as its calls are short enough.
        device: ``cpu`` or ``cuda``, which computes on after a call has returned: the clock stops when it is done.
    """

    rounds: int
    seconds: float
    device: str = "cpu"

    def alternate(self, actions: Mapping[str, Action]) -> dict[str, Values]:
        """Seconds per call, one value a round. Every round runs every action, so a slow minute slows all of them.

        The ratio of two actions is taken round by round.
        """
        calls = {name: self._warm_up(action) for name, action in actions.items()}
        seconds = {name: np.empty(self.rounds) for name in actions}
        collects = gc.isenabled()
        gc.disable()
        try:
            for i in range(self.rounds):
                for name, action in actions.items():
                    seconds[name][i] = self._time(action, calls[name])
        finally:
            if collects:
                gc.enable()
        return seconds

    def _warm_up(self, action: Action) -> int:
        """The number of calls that fit into one round."""
        action()
        once, share = self._time(action, 1), self.seconds / self.rounds
        if once < share:  # the second call may still be slow
            once = min(once, self._time(action, 1))
        return max(1, int(share / once))

    def _time(self, action: Action, calls: int) -> float:
        self._finish()
        started = time.perf_counter()
        for _ in range(calls):
            action()
        self._finish()
        return (time.perf_counter() - started) / calls

    def _finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
