"""A section as a grid of text: what every format renders."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from chainrule.reporting.tables.published import KINDS, Published
from chainrule.reporting.tables.published import block as place
from chainrule.reporting.tables.rows import Row
from chainrule.reporting.tables.sections import Section, notes
from chainrule.reporting.tables.words import nats, three_digits, value_text, with_error

LABELS = {1: "published, exact", 2: "bounds, estimates", 3: "invalid, doubtful"}


@dataclass(frozen=True)
class Column:
    """The head of a column."""

    header: str  # breaks at spaces where a console is narrow
    left: bool = False
    spare: int = 0  # where a console is too narrow, the highest goes first; 0 never goes

    @property
    def name(self) -> str:
        return self.header.replace("/ ", "/")


@dataclass(frozen=True)
class Block:
    """Lines that belong together; a rule and, where it has one, a label set them apart."""

    lines: list[list[str]]
    label: str = ""

    @property
    def labelled(self) -> list[list[str]]:
        """The lines, below one that has the label in its first cell."""
        return [[self.label, *[""] * (len(self.lines[0]) - 1)], *self.lines] if self.label else self.lines


@dataclass(frozen=True)
class Grid:
    """A table as text."""

    title: str
    columns: list[Column]
    blocks: list[Block]
    notes: list[str]


@dataclass(frozen=True)
class Cells:
    """A column, and how it shows a row of ours and a published one."""

    column: Column
    ours: Callable[[Row], str]
    theirs: Callable[[Published], str] = lambda p: ""

    def of(self, row: Row | Published) -> str:
        return self.ours(row) if isinstance(row, Row) else self.theirs(row)


def make_grid(section: Section, published: bool | str) -> Grid:
    """The section without the columns that would be empty."""
    cells = _cells(section)
    blocks = [Block([[c.of(row) for c in cells] for row in block], _label(block[0])) for block in section.blocks]
    kept = [i for i in range(len(cells)) if any(line[i] for block in blocks for line in block.lines)]
    return Grid(
        title=section.title,
        columns=[cells[i].column for i in kept],
        blocks=[Block([[line[i] for i in kept] for line in block.lines], block.label) for block in blocks],
        notes=notes(section, published),
    )


def _label(row: Row | Published) -> str:
    return LABELS[place(row)] if isinstance(row, Published) else ""


def _cells(section: Section) -> list[Cells]:
    numbers = {id(p): k for k, p in enumerate(section.published, 1)}
    kind = "exact" if section.published else ""
    examined = any(r.verdict for row in section.rows for r in row.records)
    return [
        Cells(Column("model", True), lambda r: r.first.name, lambda p: f"{p.name} ({numbers[id(p)]})"),
        *(_setting(key, name) for key, name in section.telling.items()),
        Cells(Column("test NLL"), lambda r: with_error(r.nll, r.stderr), _published_nll),
        Cells(Column("± over", True), lambda r: f"{len(r.records)} seeds" if r.over == "seeds" else "images"),
        Cells(Column("kind", True), lambda r: kind, _kind),
        Cells(Column("certified", True, 2), lambda r: r.certified if examined else ""),
        Cells(Column("best seed", spare=3), _best_seed),
        Cells(Column("bits/ pixel", spare=4), lambda r: f"{r.mean('bits_per_pixel'):.4f}", _published_bits),
        Cells(Column("parameters", spare=1), lambda r: f"{r.first.parameters:,}"),
        Cells(Column("seconds", spare=5), lambda r: three_digits(r.mean("seconds"))),
        Cells(Column("images/s", spare=6), lambda r: three_digits(r.mean("images_per_second"))),
        Cells(Column("latency, ms", spare=8), _latency),
        Cells(Column("kernel", True, 7), lambda r: r.first.kernel or ""),
    ]


def _setting(key: str, name: str) -> Cells:
    return Cells(
        Column(name, left=True), lambda r: value_text(r.first.settings[key]) if key in r.first.settings else ""
    )


def _published_nll(p: Published) -> str:
    sign = {"exact": "", "upper_bound": "≤ ", "estimate": "≈ "}[p.kind]
    return f"{sign}{nats(p.nll)}{'' if p.verified else '†'}"


def _published_bits(p: Published) -> str:
    return f"{p.nll / (784 * math.log(2)):.4f}"


def _kind(p: Published) -> str:
    if not p.valid:
        return "invalid" if p.valid_likelihood is False else "doubtful"
    return KINDS[p.kind] if p.split == "test" else f"{KINDS[p.kind]}, {p.split}"


def _best_seed(row: Row) -> str:
    return f"{row.best.seed}: {nats(row.best.nll['test'].mean)}" if row.over == "seeds" else ""


def _latency(row: Row) -> str:
    seconds = row.mean("latency")
    return "" if seconds is None else three_digits(1000 * seconds)
