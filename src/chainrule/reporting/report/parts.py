"""What the page shows of one test set: its table, charts and pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chainrule.reporting import tables
from chainrule.reporting.report.charts import Chart, Scale
from chainrule.reporting.report.figures import HUES, Named, Styles, learning_curves, nll_against
from chainrule.reporting.report.gather import Picture, Run, read_run
from chainrule.reporting.report.maps import Map, heat_maps
from chainrule.reporting.report.private import without_places

NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Cell:
    text: str
    key: float | None  # what it is sorted by; None: its text


@dataclass(frozen=True)
class Line:
    cells: list[Cell]
    style: int | None  # of the row in the charts; None for a published number


@dataclass(frozen=True)
class Body:
    label: str
    lines: list[Line]


@dataclass(frozen=True)
class Shown:
    """A picture, and whose it is."""

    label: str
    style: int
    run: Run
    picture: Picture
    map: Map | None = None


@dataclass(frozen=True)
class Part:
    """Everything on one test set."""

    section: tables.Section
    grid: tables.Grid
    bodies: list[Body]
    runs: list[tuple[str, Run]]  # with the labels of their rows
    charts: list[Chart]
    samples: list[Shown]
    completions: list[Shown]
    maps: list[Shown]

    @property
    def crowded(self) -> bool:
        """Whether some rows have no colour of their own."""
        return any(line.style == HUES for body in self.bodies for line in body.lines)


def make_part(section: tables.Section, tops: Sequence[Path], style: Styles, published: bool | str) -> Part:
    grid = tables.make_grid(section, published)
    rows = list(zip(row_labels(section), section.rows, strict=True))
    runs = [(label, read_run(record, tops)) for label, row in rows for record in row.records]
    best = {id(row.best) for row in section.rows}
    chosen = [(label, run) for label, run in runs if id(run.record) in best]
    return Part(
        section=section,
        grid=grid,
        bodies=_bodies(grid, [style[label] for label, _ in rows]),
        runs=runs,
        charts=_charts(runs, style),
        samples=[Shown(label, style[label], run, run.samples) for label, run in chosen if run.samples],
        completions=[Shown(label, style[label], run, run.completions) for label, run in chosen if run.completions],
        maps=_maps(chosen, style),
    )


def row_labels(section: tables.Section) -> list[str]:
    """Short names of the rows: the model, and what tells it apart from other rows of the same model."""
    same = {row.first.model: [r for r in section.rows if r.first.model == row.first.model] for row in section.rows}
    names = [tables.label(row, tables.differing(same[row.first.model])) for row in section.rows]
    return [
        f"{name} ({row.first.kernel or 'no kernel'})" if names.count(name) > 1 else name
        for name, row in zip(names, section.rows, strict=True)
    ]


def _charts(runs: Named, style: Styles) -> list[Chart]:
    parameters, seconds = Scale("parameters", log=True), Scale("training seconds", log=True)
    charts = [
        learning_curves(runs, style),
        nll_against(runs, style, "NLL against parameters", parameters, lambda r: r.parameters),
        nll_against(runs, style, "NLL against training time", seconds, lambda r: r.seconds),
    ]
    return [chart for chart in charts if chart]


def _maps(chosen: Named, style: Styles) -> list[Shown]:
    fields = [(label, run, run.pixels) for label, run in chosen if run.pixels is not None]
    drawn = heat_maps([field for _, _, field in fields])
    return [Shown(label, style[label], run, m.picture, m) for (label, run, _), m in zip(fields, drawn, strict=True)]


# ---- the table --------------------------------------------------------------------------------------


def _bodies(grid: tables.Grid, ours: Sequence[int]) -> list[Body]:
    """The blocks of the grid: ours, which has no label, in the order of the rows; then published numbers."""
    return [
        Body(
            block.label,
            [Line(_cells(line, grid), None if block.label else ours[k]) for k, line in enumerate(block.lines)],
        )
        for block in grid.blocks
    ]


def _cells(line: Sequence[str], grid: tables.Grid) -> list[Cell]:
    return [Cell(without_places(text), sort_key(text, c.left)) for text, c in zip(line, grid.columns, strict=True)]


def sort_key(text: str, words: bool) -> float | None:
    """The number that a cell is sorted by: the first one in it, or all of it where the column holds words."""
    found = NUMBER.fullmatch(text) if words else NUMBER.search(text)
    return float(found[0].replace(",", "").replace("−", "-")) if found else None
