"""How parameters and the time of a training step grow with n and d."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from omegaconf import DictConfig

from chainrule.bench.cases import Case, make_case
from chainrule.bench.timing import Timer, quartiles
from chainrule.reporting.growth import exponent


def measure_growth(cfg: DictConfig, timer: Timer) -> dict[str, Any]:
    """The points of every curve and a fit of each. The sizes of one curve take turns."""
    points: list[dict[str, Any]] = []
    fits = []
    for name, variable, cases in curves(cfg):
        densities = [case.density() for case in cases.values()]
        steps = {str(size): case.training(p) for (size, case), p in zip(cases.items(), densities, strict=True)}
        seconds = timer.alternate(steps)
        curve = [
            {
                "model": name, "against": variable, "n": case.n, "d": case.d,
                "parameters": density.parameter_count, "seconds": quartiles(seconds[str(size)]),
            }
            for (size, case), density in zip(cases.items(), densities, strict=True)
        ]  # fmt: skip
        points += curve
        fits.append(fit(curve, densities[0].growth or ""))
    return {"points": points, "fits": fits}


def curves(cfg: DictConfig) -> Iterable[tuple[str, str, dict[int, Case]]]:
    """Model, variable and a case for each size, those of ``growth_n`` and ``growth_d``."""
    for name in cfg.models:
        case = make_case(cfg, name)
        if sizes := cfg.growth_n.get(name):
            yield name, "n", {n: replace(case, n=n) for n in sizes}
        if sizes := cfg.growth_d.get(name):
            yield name, "d", {d: replace(case, model=case.model | {case.width: d}) for d in sizes}


def fit(curve: Sequence[dict[str, Any]], claim: str) -> dict[str, Any]:
    """The exponents of parameters and time, on the upper half of the range."""
    variable = curve[0]["against"]
    x = np.array([point[variable] for point in curve], float)
    base = 2 if claim == "2ⁿ" and variable == "n" else None
    measured = {
        "parameters": [point["parameters"] for point in curve],
        "seconds": [point["seconds"]["median"] for point in curve],
    }
    return {
        "model": curve[0]["model"],
        "against": variable,
        "claim": claim,
        "base": base,
        "exponents": {key: exponent(x, np.array(y, float), bool(base)) for key, y in measured.items()},
    }
