"""A grid as plain text for a console."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chainrule.reporting.tables.grids import Grid


def rich_text(grids: Sequence[Grid], closing: Sequence[str], width: int | None) -> str:
    width = width or shutil.get_terminal_size((120, 24)).columns
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, emoji=False)
    for grid in grids:
        console.print(_fitting(grid, width))
        _print_notes(console, grid.notes)
        console.print()
    _print_notes(console, closing)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip().splitlines())


def _print_notes(console: Console, notes: Sequence[str]) -> None:
    listing = Table.grid(padding=(0, 1))
    for note in notes:
        listing.add_row("", Text(note))
    if notes:
        console.print(listing)


def _fitting(grid: Grid, width: int) -> Table:
    """The grid as a table, without the columns that a narrow console can best do without."""
    kept = list(range(len(grid.columns)))
    spare = sorted((i for i in kept if grid.columns[i].spare), key=lambda i: grid.columns[i].spare)
    while spare and sum(_width(grid, i) + 2 for i in kept) + 1 > width:
        kept.remove(spare.pop())
    table = _table(grid, kept)
    hidden = [c.name for i, c in enumerate(grid.columns) if i not in kept]
    table.caption = f" not shown at this width: {', '.join(hidden)}" if hidden else None
    return table


def _table(grid: Grid, kept: Sequence[int]) -> Table:
    table = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left")
    table.title = Text(grid.title)
    for i in kept:
        column = grid.columns[i]
        justify: Literal["left", "right"] = "left" if column.left else "right"
        table.add_column(Text(column.header), justify=justify, width=_width(grid, i), vertical="top")
    for block in grid.blocks:
        for line in block.labelled:
            table.add_row(*(Text(line[i]) for i in kept))
        table.add_section()
    return table


def _width(grid: Grid, i: int) -> int:
    """The width of a column: headers break at spaces, cells stay whole up to 24 characters."""
    cells = max(cell_len(line[i]) for block in grid.blocks for line in block.labelled)
    return max(min(cells, 24), *map(cell_len, grid.columns[i].header.split()))
