"""A grid as Markdown, HTML and LaTeX."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence

from chainrule.reporting.tables.grids import Block, Column, Grid


def markdown(grid: Grid) -> str:
    lines = [f"**{_md(grid.title)}**", ""] if grid.title else []
    if grid.columns:
        lines += [_md_line(c.name for c in grid.columns)]
        lines += ["|" + "|".join(":---" if c.left else "---:" for c in grid.columns) + "|"]
        lines += [line for block in grid.blocks for line in _md_block(block)]
        lines += [""] if grid.notes else []
    return "\n".join([*lines, *(f"- {_md(note)}" for note in grid.notes)])


def _md_block(block: Block) -> list[str]:
    label = [f"| *{_md(block.label)}* |" + " |" * (len(block.lines[0]) - 1)] if block.label else []
    return [*label, *map(_md_line, block.lines)]


def _md_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(_md, cells)) + " |"


def _md(text: str) -> str:
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_|[]~$" else c for c in text)


def html_text(grid: Grid) -> str:
    lines = []
    if grid.columns:
        heads = "".join(_html_cell("th", c.name, c) for c in grid.columns)
        lines += [f"<table>\n<caption>{html.escape(grid.title)}</caption>", f"<thead><tr>{heads}</tr></thead>"]
        lines += [_html_block(block, grid.columns) for block in grid.blocks] + ["</table>"]
    if grid.notes:
        lines += ["<ul>", *(f"<li>{html.escape(note)}</li>" for note in grid.notes), "</ul>"]
    return "\n".join(lines)


def _html_block(block: Block, columns: Sequence[Column]) -> str:
    head = f'<th colspan="{len(columns)}" scope="rowgroup" style="text-align: left">{html.escape(block.label)}</th>'
    lines = [head] if block.label else []
    lines += ["".join(_html_cell("td", cell, c) for cell, c in zip(line, columns, strict=True)) for line in block.lines]
    return "<tbody>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</tbody>"


def _html_cell(tag: str, text: str, column: Column) -> str:
    return f'<{tag} style="text-align: {"left" if column.left else "right"}">{html.escape(text)}</{tag}>'


FLOAT = 40  # lines that fit on a page together with their notes


def latex(grid: Grid) -> str:
    """A float of booktabs' rules, made narrower where it is wider than the page; many notes follow it."""
    notes = [rf"\par\noindent {_tex(note)}" for note in grid.notes]
    if notes:
        notes = [r"{\footnotesize\raggedright", *notes, r"\par}"]
    if not grid.columns:
        return "\n".join(notes)
    fits = sum(len(block.labelled) for block in grid.blocks) + len(notes) <= FLOAT
    return "\n".join([
        r"% \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_tex(grid.title)}}}",
        *_tabular(grid),
        *(notes if fits else []),
        r"\end{table}",
        *([] if fits else notes),
    ])  # fmt: skip


def _tabular(grid: Grid) -> list[str]:
    sides = "".join("l" if c.left else "r" for c in grid.columns)
    return [
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{" rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        _tex_line(c.name for c in grid.columns),
        *(line for block in grid.blocks for line in _tex_block(block)),
        r"\bottomrule",
        r"\end{tabular}}",
    ]


def _tex_block(block: Block) -> list[str]:
    label = [rf"\multicolumn{{{len(block.lines[0])}}}{{l}}{{\emph{{{_tex(block.label)}}}}} \\"] if block.label else []
    return [r"\midrule", *label, *map(_tex_line, block.lines)]


def _tex_line(cells: Iterable[str]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}", "±": r"$\pm$", "×": r"$\times$",
    "≤": r"$\leq$", "≈": r"$\approx$", "†": r"$\dagger$", "…": r"\ldots{}", "ø": r"{\o}", "æ": r"{\ae}",
    "–": "--", "—": "---", "−": "$-$", "·": r"$\cdot$", "²": "$^2$", "ⁿ": "$^n$", "ᵈ": "$^d$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(map(_tex_character, " ".join(text.split())))


def _tex_character(c: str) -> str:
    """What every LaTeX engine can set: accents fall off letters that cannot be written, the rest is a ``?``."""
    plain = unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()
    return TEX.get(c) or (c if c.isascii() else plain or "?")
