"""Timing on a machine that others use, too: warm up, take turns, report medians and quartiles."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Action = Callable[[], object]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


def spread(values: Values | Sequence[float]) -> Spread:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Spread(float(median), float(low), float(high))


@dataclass(frozen=True)
class Clock:
    """Measures by rounds.

    Args:
        rounds: values that each action gets; a median needs a few.
        seconds: time for one action, all rounds together, as far as its calls are short enough.
        device: a CUDA device computes on after a call has returned: the clock stops when it has finished.
    """

    rounds: int
    seconds: float
    device: str = "cpu"

    def alternate(self, actions: Mapping[str, Action]) -> dict[str, Values]:
        """Seconds per call, a value a round: every round runs every action, so a slow minute slows all of them."""
        calls = {name: self._calls(action) for name, action in actions.items()}
        rounds: dict[str, list[float]] = {name: [] for name in actions}
        with _undisturbed():
            for _ in range(self.rounds):
                for name, action in actions.items():
                    rounds[name].append(self._timed(action, calls[name]))
        return {name: np.array(values) for name, values in rounds.items()}

    def time(self, action: Action) -> Values:
        """The same for one action alone."""
        return self.alternate({"": action})[""]

    def each(self, action: Action, most: int = 200) -> Values:
        """Seconds of single calls, as many as there is time for."""
        calls = min(most, max(self.rounds, self.rounds * self._calls(action)))
        with _undisturbed():
            return np.array([self._timed(action, 1) for _ in range(calls)])

    def _calls(self, action: Action) -> int:
        """Warms up; how many calls of the action fit into one round."""
        action()
        once = self._timed(action, 1)
        if once < self.seconds / self.rounds:  # the first calls after the first are not yet the fastest
            once = min(once, self._timed(action, 1))
        return max(1, int(self.seconds / self.rounds / once))

    def _timed(self, action: Action, calls: int) -> float:
        self._finish()
        started = time.perf_counter()
        for _ in range(calls):
            action()
        self._finish()
        return (time.perf_counter() - started) / calls

    def _finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Collects no garbage while the clock runs."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
