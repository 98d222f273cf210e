"""How parameters, time and memory grow with n and d, beside what the text says: 2ⁿ, n², n²d, nd."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from chainrule.bench import memory
from chainrule.bench.clock import Clock, spread
from chainrule.bench.job import Job, job
from chainrule.bench.speed import name

CLAIMS = {"tabular": "2ⁿ", "fvsbn": "n²", "mlp": "n²d", "nade": "nd"}  # of parameters, in the text
EXPONENTIAL = ("tabular", "n")  # fitted as base^n; every other pair as a power
FEWEST = 3  # points of a fit, if there are as many
NOTICEABLE = 0.15  # a difference of exponents that deserves a word

FASTER, SLOWER = "faster", "more slowly"

# Why the time of a training step need not grow as the parameters do.
CALLS = "a step makes some dozens of calls of torch, whose price is fixed and outweighs the arithmetic at the low end"
REASONS = {
    ("tabular", "n", SLOWER): "a step looks up n numbers per image; gradient, prior and optimizer do visit all 2ⁿ − 1, "
    "but a small table costs no more than the calls that visit it",
    ("fvsbn", "n", SLOWER): f"the products take Bn²/2 multiply-adds, B for each parameter, but {CALLS}, "
    "and larger products run nearer to the machine's ceiling",
    ("fvsbn", "n", FASTER): "weights, gradients and moments outgrow the caches, and the optimizer waits for memory",
    ("mlp", "n", SLOWER): f"the products take Bn²d/2 multiply-adds, but the sigmoids only Bnd, and {CALLS}",
    ("mlp", "n", FASTER): "weights, gradients and moments outgrow the caches, and the optimizer waits for memory",
    ("mlp", "d", SLOWER): f"products, sigmoids and optimizer are linear in d, but {CALLS}",
    ("mlp", "d", FASTER): "weights, gradients and moments outgrow the caches, and the optimizer waits for memory",
    ("nade", "n", SLOWER): f"products and the sigmoids of pixels that are on are linear in n, but {CALLS}",
    ("nade", "n", FASTER): "each group of images visits all of W, V and their gradients, which outgrow the caches",
    (
        "nade",
        "d",
        SLOWER,
    ): "64 hidden units are computed at a time, so fewer cost the same; and what does not depend on "
    "d, the loss and the runs of bits, is a share of the time",
    ("nade", "d", FASTER): "W, V and their gradients outgrow the caches",
}


def jobs(cfg: DictConfig) -> Iterable[tuple[str, Job]]:
    """("n" or "d", job) for each point: where one varies, the other is the model's first size's."""
    for model in cfg.models:
        first = cfg.sizes[model][0]
        for n in cfg.growth_n.get(model, ()):
            yield "n", job(cfg, model, n, first.get("d"))
        for d in cfg.growth_d.get(model, ()):
            yield "d", job(cfg, model, first.n, d)


def of_growth(cfg: DictConfig, clock: Clock) -> dict[str, Any]:
    """Points and fits."""
    points = [_point(against, one, clock) for against, one in jobs(cfg)]
    if cfg.memory:
        peaks = memory.peaks([one for _, one in jobs(cfg)])
        points = [point | {"memory": peak} for point, peak in zip(points, peaks, strict=True)]
    return {"points": points, "fits": fits(points)}


def _point(against: str, one: Job, clock: Clock) -> dict[str, Any]:
    step = one.training()
    return {
        "model": name(one), "against": against, "n": one.n, "d": one.d,
        "parameters": step.density.parameter_count,
        "seconds": asdict(spread(clock.time(step))),
    }  # fmt: skip


def fits(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each model and variable: the exponent of parameters, time and memory on the upper half of its range."""
    curves = list(dict.fromkeys((point["model"], point["against"]) for point in points))
    return [_fit(curve, [p for p in points if (p["model"], p["against"]) == curve]) for curve in curves]


def _fit(curve: tuple[str, str], points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    x = np.array([point[curve[1]] for point in points], float)
    measured = {
        "parameters": [point["parameters"] for point in points],
        "seconds": [point["seconds"]["median"] for point in points],
    }
    if all("memory" in point for point in points):
        measured["memory"] = [point["memory"] for point in points]
    exponents = {key: exponent(x, np.array(y, float), curve == EXPONENTIAL) for key, y in measured.items()}
    return {
        "model": curve[0],
        "against": curve[1],
        "claim": CLAIMS.get(curve[0], ""),
        "base": 2 if curve == EXPONENTIAL else None,
        "exponents": exponents,
        "remark": _remark(curve, exponents),
    }


def exponent(x: NDArray[np.float64], y: NDArray[np.float64], exponential: bool = False) -> float | None:
    """k of y ∝ xᵏ (or y ∝ 2ᵏˣ), by least squares of logarithms on the upper half of x; None of too few points."""
    upper = np.argsort(x)[-fitted(len(x)) :]
    if len(upper) < 2 or (y[upper] <= 0).any():
        return None
    abscissa = x[upper] if exponential else np.log2(x[upper])
    return float(np.polyfit(abscissa, np.log2(y[upper]), 1)[0])


def fitted(points: int) -> int:
    """How many of the last points a fit is made of."""
    return max(FEWEST, math.ceil(points / 2))


def _remark(curve: tuple[str, str], exponents: dict[str, float | None]) -> str:
    parameters, seconds = exponents["parameters"], exponents["seconds"]
    if parameters is None or seconds is None:
        return ""
    if abs(seconds - parameters) < NOTICEABLE:
        return "time grows as the parameters do"
    direction = FASTER if seconds > parameters else SLOWER
    reason = REASONS.get((*curve, direction))
    return f"time grows {direction}" + (f": {reason}" if reason else "")
