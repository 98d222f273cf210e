"""How cost grows with the size of a model: what ``chainrule bench`` measured, beside what each class claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

Values = NDArray[np.float64]
Bench = Mapping[str, Any]  # the contents of a bench.json

STYLES = ("#000000s", "#9e2a2bo", "#3a86c8^", "#e0922fD", "#4a7c59v", "#7b4fa3P", "#00808cX", "#c2477fp")
GREY = "#999999"
VARIABLES = {"n": "n, pixels", "d": "d, hidden units"}
MEASURES = {"parameters": ("parameters", 1), "seconds": ("training step, ms", 1e3)}  # title, units in one of the record


def claimed(claim: str, variable: str, x: Values) -> Values:
    """What a claim such as ``2ⁿ`` or ``n²d`` says of one variable, n or d, at the sizes ``x``; a factor is free."""
    if claim == f"2{'ⁿ' if variable == 'n' else 'ᵈ'}":
        return np.exp2(x)
    _, found, rest = claim.partition(variable)
    return np.power(x, {"²": 2, "³": 3}.get(rest[:1], 1) if found else 0)


def exponent(x: Values, y: Values, exponential: bool = False) -> float | None:
    """k of y ∝ xᵏ (or y ∝ 2ᵏˣ): least squares of logarithms on the upper half of x; None for too few points."""
    upper = np.argsort(x)[-fitted(len(x)) :]
    if len(upper) < 2 or (y[upper] <= 0).any():
        return None
    abscissa = x[upper] if exponential else np.log2(x[upper])
    return float(np.polyfit(abscissa, np.log2(y[upper]), 1)[0])


def fitted(points: int) -> int:
    """How many of the last points a fit is made of: at least three, so that fixed costs do not count."""
    return max(3, (points + 1) // 2)


def growth_figure(bench: Bench) -> Figure:
    """Parameters and time against n and d, the claims dashed, and the time of rivals where they were measured."""
    growth, rivals = bench.get("growth") or {"points": [], "fits": []}, bench.get("rivals") or []
    models = list(dict.fromkeys(point["model"] for point in [*growth["points"], *rivals]))
    styles = {model: STYLES[i % len(STYLES)] for i, model in enumerate(models)}
    variables = [v for v in VARIABLES if any(point["against"] == v for point in growth["points"])]
    panels = [(variable, key) for variable in variables for key in MEASURES]
    columns = max(1, min(2, len(panels)))
    rows = -(-len(panels) // columns) + bool(rivals)
    figure = Figure(figsize=(6.2 * columns, 3.4 * max(1, rows)), layout="constrained", dpi=130)
    grid = figure.add_gridspec(max(1, rows), columns)
    for i, (variable, key) in enumerate(panels):
        _draw_growth(figure.add_subplot(grid[i // columns, i % columns]), growth, variable, key, styles)
    if rivals:
        _draw_rivals(figure.add_subplot(grid[-1, :]), rivals, styles)
    claims = {fit["model"]: fit["claim"] for fit in growth["fits"] if fit["claim"]}
    if claims:
        dashed = ", ".join(f"{claim} ({model})" for model, claim in claims.items())
        figure.supxlabel(f"dashed: growth of the parameters by formula, {dashed}", fontsize=9, color="#555555")
    return figure


def _draw_growth(ax: Axes, growth: Bench, variable: str, key: str, styles: Mapping[str, str]) -> None:
    title, unit = MEASURES[key]
    for fit in (fit for fit in growth["fits"] if fit["against"] == variable):
        points = [p for p in growth["points"] if (p["model"], p["against"]) == (fit["model"], variable)]
        x = np.array([point[variable] for point in points], float)
        y = unit * np.array([point[key]["median"] if key == "seconds" else point[key] for point in points], float)
        power, style = fit["exponents"].get(key), styles[fit["model"]]
        base, raised = (fit["base"], variable) if fit["base"] else (variable, "")
        found = "" if power is None else f" ${base}^{{{power:.2f}{raised}}}$"
        ax.loglog(x, y, style[7:] + "-", color=style[:7], label=fit["model"] + found, markersize=4.5, linewidth=1.4)
        if fit["claim"]:
            x, last = x[-fitted(len(x)) :], y[-1]
            grown = claimed(fit["claim"], variable, x)
            ax.plot(x, last * grown / grown[-1], "--", color=GREY, linewidth=1.1, zorder=1)
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel(VARIABLES[variable], fontsize=9)
    ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _tidy(ax)


def _draw_rivals(ax: Axes, rivals: Sequence[Bench], styles: Mapping[str, str]) -> None:
    """A bar for the training step of each rival, in multiples of this package's."""
    bars = [rival for rival in reversed(rivals) if rival.get("ratio")]
    names = [f"{rival['model']}: {rival['rival']}" for rival in bars]
    drawn = ax.barh(names, [bar["ratio"]["median"] for bar in bars], color=[styles[bar["model"]][:7] for bar in bars])
    ax.bar_label(drawn, [f"{bar['ratio']['median']:.3g}×" for bar in bars], padding=3, fontsize=8)
    ax.set_xscale("log")
    ratios = [1, *(bar["ratio"]["median"] for bar in bars)]
    ax.set_xlim(0.8 * min(ratios), 2 * max(ratios))
    ax.set_title("training step of rivals, times this package's", loc="left", fontsize=10)
    _tidy(ax)


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    for axis in (axis for axis in (ax.xaxis, ax.yaxis) if axis.get_scale() == "log"):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.set_minor_formatter(NullFormatter())
        if high < 1e4:
            axis.set_major_formatter("{x:g}")
    ax.grid(visible=True, color="#eeeeee", linewidth=0.7)
    ax.set_axisbelow(True)
