"""Figures of finished runs by matplotlib, in the sizes of a paper's column, for the report and for papers."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

COLUMN, PAGE = 3.25, 6.75  # inches: one column of a paper, and both
STYLE: dict[str, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8, "axes.labelsize": 8,
    "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.titlesize": 8, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5, "axes.axisbelow": True, "lines.linewidth": 1.1, "lines.markersize": 4,
    "legend.frameon": False, "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "chainrule",
}  # fmt: skip
# Told apart by colour-blind eyes and, with the markers, in gray; then they come again, hollow; all others are gray.
COLORS = ("#0067a5", "#bd4700", "#00745a", "#98397c", "#7d6000", "#4a49a8", "#1b1d20")
MARKERS = "osD^vPX"
STYLES = [
    {"color": color, "marker": marker, "markerfacecolor": fill or color}
    for fill in (None, "white") for color, marker in zip(COLORS, MARKERS, strict=True)
] + [{"color": "#85898f", "marker": "."}]  # fmt: skip
HEAD = 0.15  # the share of the epochs that may lie above the chart of learning curves

Points = Sequence[tuple[float, float]]


@contextmanager
def styled() -> Iterator[None]:
    """Within it, figures are drawn and saved in our style, whatever else is set."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each label, in their order."""
    return {label: STYLES[min(k, len(STYLES) - 1)] for k, label in enumerate(dict.fromkeys(labels))}


def learning_curves(runs: Sequence[tuple[str, Points, Points, int | None]]) -> Figure | None:
    """NLL after every epoch, validation solid and training dotted.

    Args:
        runs: label of the row; (epoch, nats) of training and of validation images; the epoch that was selected.
    """
    style = styles([run[0] for run in runs])  # of those without curves, too: the same in every chart
    runs = [run for run in runs if run[1] or run[2]]
    if not runs:
        return None
    figure, axes = _figure()
    for label, train, valid, best in runs:
        selected = [i for i, p in enumerate(valid) if p[0] == best]
        axes.plot(*_xy(valid), **style[label], markevery=selected, label=label)
        axes.plot(*_xy(train), ":", color=style[label]["color"])
    curves = [points for run in runs for points in run[1:3] if points]
    high = max(y for points in curves for _, y in points[min(math.ceil(HEAD * len(points)), len(points) - 1) :])
    low = min(y for points in curves for _, y in points)
    room = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - room, high + room)
    lengths = [points[-1][0] for points in curves]
    if max(lengths) > 8 * min(lengths):  # short trainings would be a line upwards
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _labelled(figure, axes, "epoch", "NLL (nats per image)")


def nll_against(points: Sequence[tuple[str, float | None, float, float]], x: str) -> Figure | None:
    """Test NLL of every run against what it costs.

    Args:
        points: label of the row; cost; NLL and its standard error in nats.
        x: what the cost is.
    """
    known = [(label, cost, nll, error) for label, cost, nll, error in points if cost and math.isfinite(nll)]
    if not known:
        return None
    style, (figure, axes) = styles([point[0] for point in points]), _figure()
    for label, cost, nll, error in known:
        axes.errorbar(cost, nll, error, **style[label], linestyle="none", label=label, elinewidth=0.8, capsize=1.5)
    axes.set_xscale("log")
    costs = [cost for _, cost, _, _ in known]
    low, high = min(costs), max(costs)
    axes.set_xlim(low / 1.5, high * 1.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    return _labelled(figure, axes, x, "test NLL (nats per image)")


def pixel_maps(fields: Sequence[tuple[str, NDArray[np.float64]]]) -> Figure | None:
    """What each pixel costs given all before it, all maps on one scale; ``fields`` are (height, width) nats."""
    if not fields:
        return None
    high = max(float(field.max()) for _, field in fields) or 1.0
    figure, grid = _grid_of(len(fields), 1.15)
    for axes, (label, field) in zip(grid, fields, strict=False):
        image = axes.imshow(field, cmap="cividis", vmin=0, vmax=high, interpolation="none")
        axes.set_title(f"{_broken(label)}\n{field.sum():.2f} nats")
    figure.colorbar(image, ax=grid, label="nats per pixel", shrink=0.8, aspect=30)
    return figure


def side_by_side(pictures: Sequence[tuple[str, NDArray[np.uint8]]]) -> Figure | None:
    """Samples or completions of several models, (height, width) gray values each."""
    if not pictures:
        return None
    tallest = max(picture.shape[0] / picture.shape[1] for _, picture in pictures)
    figure, grid = _grid_of(len(pictures), tallest + 0.15)
    for axes, (label, picture) in zip(grid, pictures, strict=False):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="none")
        axes.set_title(_broken(label))
    return figure


def svg(figure: Figure) -> str:
    """A figure as the address of an image inside a page."""
    return f"data:image/svg+xml;base64,{base64.b64encode(_saved(figure, 'svg')).decode()}"


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Writes each figure as PDF and as SVG, and returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in figures.items():
        for form in ("pdf", "svg"):
            files.append(folder / f"{name}.{form}")
            files[-1].write_bytes(_saved(figure, form))
    return files


def _saved(figure: Figure, form: str) -> bytes:
    file = io.BytesIO()
    dateless = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with styled():
        if figure.get_layout_engine() is not None:  # laid out once, for every form
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(file, format=form, metadata=dateless[form])
    return file.getvalue()


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(COLUMN, 2.2), layout="constrained", dpi=150)
    return figure, figure.add_subplot()


def _grid_of(count: int, shape: float) -> tuple[Figure, list[Axes]]:
    """Axes without ticks, at most four in a row, each ``shape`` times as high as wide."""
    columns = min(count, 4)
    width, rows = (COLUMN if count < 3 else PAGE), -(-count // columns)
    figure = Figure(figsize=(width, width / columns * shape * rows), layout="constrained", dpi=150)
    grid = [figure.add_subplot(rows, columns, k + 1, frameon=False, xticks=[], yticks=[]) for k in range(count)]
    return figure, grid


def _labelled(figure: Figure, axes: Axes, x: str, y: str) -> Figure:
    """With names on the axes and, below them, a legend with every label once."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    width = max(map(len, handles))
    columns = 1 if width > 26 else 2 if width > 12 else 3
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
    figure.set_figheight(2.2 + 0.16 * -(-len(handles) // columns))  # the axes are as high in every chart
    return figure


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _broken(label: str) -> str:
    return label.replace(", ", ",\n", 1) if len(label) > 16 else label


def _short(value: float) -> str:
    """A number on an axis: 50k, 2M, 0.05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
