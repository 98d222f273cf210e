"""The benchmark's record as a picture: NADE's rivals, and how everything grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from chainrule.bench.clock import Values
from chainrule.bench.growth import fitted
from chainrule.bench.show import seconds_as_text

Record = dict[str, Any]

# From dark to light, so that they differ in grey as well; and a marker each.
STYLES = {
    "tabular": ("#000000", "s"),
    "fvsbn": ("#9e2a2b", "o"),
    "mlp": ("#3a86c8", "^"),
    "nade": ("#e0922f", "D"),
}
NAMES = {
    "kernel": "this kernel",
    "chunked": "torch, in chunks",
    "cumsum": "torch, cumsum",
    "loop": "Python loop",
    "rows": "Python loop,\nrows of W",
    "unbound": "Python loop,\nrows unbound",
}
OTHER = ("#777777", "v")
QUIET, DARK = "#999999", "#555555"
CAPTION = "dashed: as the text says of parameters, 2ⁿ (tabular), n² (fvsbn), n²d (mlp), nd (nade)"

# What the text says of parameters, and so of any cost that follows them.
CLAIMS: dict[tuple[str, str], Callable[[Values], Values]] = {
    ("tabular", "n"): np.exp2,
    ("fvsbn", "n"): np.square,
    ("mlp", "n"): np.square,
    ("mlp", "d"): np.array,
    ("nade", "n"): np.array,
    ("nade", "d"): np.array,
}


@dataclass(frozen=True)
class Panel:
    """One quantity of the points, in ``unit`` per unit of the picture, against n or d."""

    against: str
    key: str
    title: str
    unit: float = 1


PANELS = (
    Panel("n", "parameters", "parameters against n"),
    Panel("n", "seconds", "training step against n, ms", 1e-3),
    Panel("n", "memory", "peak memory of training against n, MB", 1e6),
    Panel("d", "parameters", "parameters against d"),
    Panel("d", "seconds", "training step against d, ms", 1e-3),
)
APART = 0.065  # labels, as a share of the axis
AXIS = 200  # the height of an axis in points, roughly
VARIABLES = {"n": "n, pixels", "d": "d, hidden units"}


def save_plot(record: Record, path: Path) -> None:
    """Writes the PNG; without growth, only the rivals."""
    panels = [panel for panel in PANELS if _curves(record, panel)]
    count = len(panels) + ("nade" in record)
    columns = min(3, max(1, count))
    figure = Figure(figsize=(4.6 * columns, 3.7 * max(1, -(-count // columns))), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(-(-count // columns), columns, i + 1) for i in range(count)]
    for panel, ax in zip(panels, axes, strict=False):
        _growth(ax, record, panel)
    if "nade" in record:
        _rivals(axes[-1], record)
    if panels:
        figure.supxlabel(CAPTION, fontsize=9, color=DARK)
    figure.savefig(path)


def _curves(record: Record, panel: Panel) -> dict[str, list[Record]]:
    """The points of each model that has at least two."""
    found: dict[str, list[Record]] = {}
    for point in record.get("growth", {}).get("points", []):
        if point["against"] == panel.against and panel.key in point:
            found.setdefault(point["model"], []).append(point)
    return {model: curve for model, curve in found.items() if len(curve) > 1}


def _growth(ax: Axes, record: Record, panel: Panel) -> None:
    ends = []
    for model, curve in _curves(record, panel).items():
        x = np.array([point[panel.against] for point in curve], float)
        y = np.array([_value(point, panel.key) for point in curve]) / panel.unit
        color, marker = STYLES.get(model, OTHER)
        ax.loglog(x, y, color=color, marker=marker, markersize=4.5, linewidth=1.4)
        _claim(ax, (model, panel.against), x, y)
        ends.append((x[-1], y[-1], _name(record, model, panel), color))
    ax.margins(y=0.1)
    ax.set_xlim(ax.get_xlim()[0], 12 * ax.get_xlim()[1])  # room for names
    _names(ax, ends)
    ax.set_xlabel(VARIABLES[panel.against], fontsize=9)
    ax.set_title(panel.title, loc="left", fontsize=10)
    _ticks(ax)
    _tidy(ax)


def _ticks(ax: Axes) -> None:
    """Numbers at powers of ten, and between them where there are hardly any."""
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    if high < 1e5:
        ax.yaxis.set_major_formatter("{x:g}")


def _name(record: Record, model: str, panel: Panel) -> str:
    """The model, and how fast the curve was found to grow."""
    fit = next(f for f in record["growth"]["fits"] if (f["model"], f["against"]) == (model, panel.against))
    k = fit["exponents"].get(panel.key)
    if k is None:
        return model
    power = f"{fit['base']}^{{{k:.2f}{panel.against}}}" if fit["base"] else f"{panel.against}^{{{k:.2f}}}"
    return f"{model}  ${power}$"


def _names(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes the names where curves end: beside the rightmost, kept apart; left of the others, or above them."""
    low, high = np.log(ax.get_ylim())
    rightmost, taken = max(end[0] for end in ends), -1.0
    for x, y, name, color in sorted(ends, key=lambda end: end[1]):
        wanted = (np.log(y) - low) / (high - low)
        height, place, side = wanted, (-7.0, 3.0), "right"
        if x == rightmost:
            taken = height = max(wanted, taken + APART)
            place, side = (7.0, (height - wanted) * AXIS), "left"
        elif x < rightmost / 50:  # too near to the axis
            place, side = (0.0, 10.0), "center"
        ax.annotate(name, (x, y), place, textcoords="offset points", color=color, va="center", ha=side, fontsize=9)


def _value(point: Record, key: str) -> float:
    value = point[key]
    return float(value["median"] if isinstance(value, dict) else value)


def _claim(ax: Axes, curve: tuple[str, str], x: Values, y: Values) -> None:
    """Growth as the text says, as a dashed line through the last point, over the range that was fitted."""
    if curve in CLAIMS:
        x, last = x[-fitted(len(x)) :], y[-1]
        grown = CLAIMS[curve](x)
        ax.plot(x, grown * (last / grown[-1]), "--", color=QUIET, linewidth=1.1, zorder=1)


def _rivals(ax: Axes, record: Record) -> None:
    rivals = sorted(record["nade"]["rivals"], key=lambda r: -float(r["seconds"]["median"]))
    milliseconds = [1e3 * r["seconds"]["median"] for r in rivals]
    colors = [STYLES["nade"][0] if r["name"] == "kernel" else QUIET for r in rivals]
    bars = ax.barh([NAMES[r["name"]] for r in rivals], milliseconds, color=colors, height=0.6)
    texts = [_bar_text(r) for r in rivals]
    ax.bar_label(bars, texts, padding=4, fontsize=8)
    ax.set_xlim(0, 1.45 * max(milliseconds))
    title = f"NADE-{record['nade']['d']} training step, {record['config']['batch']} images, ms"
    ax.set_title(title, loc="left", fontsize=10)
    _tidy(ax)


def _bar_text(rival: Record) -> str:
    time = seconds_as_text(rival["seconds"]["median"])
    return time if rival["name"] == "kernel" else f"{time}, {rival['ratio']['median']:.0f}×"


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    ax.grid(visible=True, axis="both", color="#eeeeee", linewidth=0.7)
    ax.set_axisbelow(True)
