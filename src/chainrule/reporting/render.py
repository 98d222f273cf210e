"""Tables of text as they are shown: on a console, in Markdown, in LaTeX; and flat rows as CSV."""

from __future__ import annotations

import csv
import io
import re
import shutil
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rich.cells import cell_len

from chainrule.reporting.format import printable

FORMATS = ("console", "markdown", "latex", "csv")
MARK = re.compile(r" ?\((\d+)\)")  # of a note


@dataclass(frozen=True)
class Column:
    """The head of a column."""

    header: str  # a console breaks it at spaces
    left: bool = False

    @property
    def name(self) -> str:
        return self.header.replace("- ", "").replace("/ ", "/")


@dataclass(frozen=True)
class Block:
    """Lines that belong together; a rule and, where it has one, a label set them apart."""

    lines: list[list[str]]
    label: str = ""
    bold: frozenset[tuple[int, int]] = frozenset()  # line and column of the best numbers


@dataclass(frozen=True)
class Grid:
    """A table as text."""

    title: str
    columns: list[Column]
    blocks: list[Block]
    notes: list[str]


def check_format(form: str, formats: Sequence[str] = FORMATS) -> None:
    """Raises ValueError for a format that there is not."""
    if form not in formats:
        raise ValueError(f"unknown format {form!r}: choose one of {', '.join(formats)}")


def render(grids: Sequence[Grid], closing: Sequence[str], form: str, width: int | None = None) -> str:
    """Grids, and lines that belong to none of them, as text in any format but csv.

    Args:
        grids: the tables.
        closing: the lines.
        form: one of :data:`FORMATS`.
        width: of the console in characters; default: the terminal's.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    forms: dict[str, Callable[[Grid], str]] = {
        "markdown": markdown,
        "latex": latex,
        "console": partial(console, width=width),
    }
    one = forms[form]
    return "\n\n".join(filter(None, [*map(one, grids), one(Grid("", [], [], list(closing)))]))


# ---- console ----------------------------------------------------------------------------------------


def console(grid: Grid, width: int) -> str:
    """Plain text. Only the first column wraps; the table is wider than the console before a number is cut."""
    table = _console_table(grid, width) if grid.columns else []
    title = [textwrap.fill(printable(grid.title), width)] if grid.title else []
    notes = [textwrap.fill(printable(note), width, subsequent_indent="  ") for note in grid.notes]
    return "\n".join([*title, *table, *notes])


def _console_table(grid: Grid, width: int) -> list[str]:
    lines = [[printable(cell) for cell in line] for block in grid.blocks for line in block.lines]
    widths = [
        max(map(cell_len, [*column.header.split(), *(line[i] for line in lines)]))
        for i, column in enumerate(grid.columns)
    ]
    gap = 2 if sum(widths) + 2 * len(widths) - 2 <= width else 1
    longest_word = max((cell_len(word) for line in lines for word in line[0].split()), default=0)
    room = width - sum(widths[1:]) - gap * (len(widths) - 1)
    widths[0] = min(widths[0], max(room, longest_word))

    def row(cells: Sequence[str], head: bool = False) -> list[str]:
        """As many lines as the first cell needs, or in the head any."""
        broken = [
            textwrap.wrap(cell, widths[i], break_long_words=False, break_on_hyphens=False) or [""]
            if head or i == 0 else [cell] for i, cell in enumerate(cells)
        ]  # fmt: skip
        height = max(map(len, broken))
        blank = [[""] * (height - len(parts)) for parts in broken]
        full = [b + parts if head else parts + b for b, parts in zip(blank, broken, strict=True)]
        return [
            (" " * gap).join(map(_aligned, parts, widths, grid.columns)).rstrip() for parts in zip(*full, strict=True)
        ]

    rule = "─" * (sum(widths) + gap * (len(widths) - 1))
    text = [rule, *row([column.header for column in grid.columns], head=True)]
    for block in grid.blocks:
        text += [rule, *([printable(block.label)] if block.label else [])]
        text += [part for line in block.lines for part in row([printable(cell) for cell in line])]
    return [*text, rule]


def _aligned(text: str, width: int, column: Column) -> str:
    blank = " " * (width - cell_len(text))
    return text + blank if column.left else blank + text


# ---- Markdown ---------------------------------------------------------------------------------------


def markdown(grid: Grid) -> str:
    """A table as GitHub shows it, its title in bold, its notes as a list."""
    lines = [f"**{_md(grid.title)}**", ""] if grid.title else []
    if grid.columns:
        lines += [_md_line(_md(c.name) for c in grid.columns)]
        lines += ["|" + "|".join(":---" if c.left else "---:" for c in grid.columns) + "|"]
        lines += [line for block in grid.blocks for line in _md_block(block)]
        lines += [""] if grid.notes else []
    return "\n".join([*lines, *(f"- {_md(note)}" for note in grid.notes)])


def _md_block(block: Block) -> list[str]:
    label = [f"| *{_md(block.label)}* |" + " |" * (len(block.lines[0]) - 1)] if block.label else []
    return [*label, *(
        _md_line(f"**{_md(cell)}**" if (i, k) in block.bold else _md(cell) for k, cell in enumerate(line))
        for i, line in enumerate(block.lines)
    )]  # fmt: skip


def _md_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md(text: str) -> str:
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_|[]~$" else c for c in text)


# ---- LaTeX ------------------------------------------------------------------------------------------

FLOAT = 40  # lines that fit on a page together with their notes


def latex(grid: Grid) -> str:
    """A float with booktabs' rules for a page in portrait; its notes below it, or after it where they are many."""
    notes = [rf"{_tex_marked(note)}\par" for note in grid.notes]
    if not grid.columns:
        return "\n".join([r"{\footnotesize\raggedright\noindent", *notes, "}"]) if notes else ""
    below = [r"\par\medskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright", *notes, r"\end{minipage}"]
    after = [r"{\footnotesize\raggedright\noindent", *notes, "}"]
    lines = sum(len(block.lines) + bool(block.label) for block in grid.blocks)
    fits = lines + sum(1 + len(note) // 100 for note in notes) <= FLOAT
    name = re.sub(
        r"[^a-z0-9]+", "-", printable(grid.title).partition(":")[0].partition(", test set")[0].replace("×", "x").lower()
    )
    sides = "".join("l" if c.left else "r" for c in grid.columns[1:])
    return "\n".join([
        r"% \usepackage{booktabs,tabularx}",
        r"\begin{table}[t]",
        r"\small\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_tex(grid.title)}}}\label{{tab:{name}}}",
        rf"\begin{{tabularx}}{{\linewidth}}{{@{{}}>{{\raggedright\arraybackslash}}X{sides}@{{}}}}",
        r"\toprule",
        _tex_line(map(_tex_head, grid.columns)),
        *(line for block in grid.blocks for line in _tex_block(block)),
        r"\bottomrule",
        r"\end{tabularx}",
        *(below if notes and fits else []),
        r"\end{table}",
        *(after if notes and not fits else []),
    ])  # fmt: skip


def _tex_block(block: Block) -> list[str]:
    label = (
        [rf"\multicolumn{{{len(block.lines[0])}}}{{@{{}}l}}{{\emph{{{_tex(block.label)}}}}} \\"] if block.label else []
    )
    return [r"\midrule", *label, *(
        _tex_line(rf"\textbf{{{_tex(c)}}}" if (i, k) in block.bold else _tex_marked(c) for k, c in enumerate(line))
        for i, line in enumerate(block.lines)
    )]  # fmt: skip


def _tex_head(column: Column) -> str:
    text = _tex(column.header).replace("/ ", r"/\\").replace("- ", r"-\\")
    return rf"\shortstack[{'l' if column.left else 'r'}]{{{text}}}" if r"\\" in text else text


def _tex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex_marked(text: str) -> str:
    """The mark of a note raised, whether it stands behind a name or before the note."""
    parts = MARK.split(text)
    return "".join(rf"\textsuperscript{{{part}}}" if i % 2 else _tex(part) for i, part in enumerate(parts))


TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}", "±": r"$\pm$", "×": r"$\times$",
    "≤": r"$\leq$", "≈": r"$\approx$", "†": r"$\dagger$", "…": r"\ldots{}", "ø": r"{\o}", "æ": r"{\ae}",
    "–": "--", "—": "---", "−": "$-$", "·": r"$\cdot$", "²": "$^2$", "ⁿ": "$^n$", "ᵈ": "$^d$",
}  # fmt: skip


def _tex(text: str) -> str:
    start, end = " " * text.startswith(" "), " " * text.endswith(" ")
    return start + "".join(map(_tex_character, printable(text))) + end


def _tex_character(c: str) -> str:
    """What every LaTeX engine can set: accents fall off letters that cannot be written, the rest is a ``?``."""
    plain = unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()
    return TEX.get(c) or (c if c.isascii() else plain or "?")


# ---- CSV --------------------------------------------------------------------------------------------


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """One flat table, its columns in the order in which rows name them; spreadsheets take no cell for a formula."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _guarded(value) for key, value in row.items()} for row in rows)
    return file.getvalue().rstrip("\n")


def _guarded(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return (
        f"'{text}"
        if text.startswith(("=", "+", "-", "@")) and not re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text)
        else text
    )
