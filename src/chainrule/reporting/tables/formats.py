"""``chainrule tabulate``: records and published numbers → tables, in five formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chainrule.reporting.tables.console import rich_text
from chainrule.reporting.tables.finding import failure, find, standing
from chainrule.reporting.tables.flat import csv_text
from chainrule.reporting.tables.grids import Grid, make_grid
from chainrule.reporting.tables.markup import html_text, latex, markdown
from chainrule.reporting.tables.sections import sections
from chainrule.reporting.tables.words import capped, short_path

FORMATS = ("rich", "markdown", "latex", "csv", "html")
PUBLISHED = (True, False, "verified", "all")


def tabulate(
    runs: Sequence[Path | str] | Path | str,
    format: str = "rich",  # noqa: A002 (the key in tabulate.yaml)
    published: bool | str = True,
    invalid: bool = False,
    width: int | None = None,
) -> str:
    """Tables of all finished runs under some folders, one for each test set.

    Args:
        runs: run directories, or folders that contain some.
        format: ``rich`` (plain text for a console), ``markdown``, ``latex`` (booktabs), ``csv`` or ``html``.
        published: beside ours, the best published exact likelihood of each autoregressive model on the same
            test set; ``"verified"`` for figures that were read in their source only; ``"all"`` for bounds,
            estimates and latent-variable models too; False for none.
        invalid: also published figures that are no likelihood, or may be none, with the reason.
        width: of the console, in characters; only for ``rich``. Default: the terminal's.

    Raises:
        ValueError: the format is unknown, a path does not exist, a record cannot be read, or there is no run.
    """
    check_format(format)
    check_published(published)
    if not isinstance(invalid, bool):
        raise ValueError(f"invalid must be true or false, got {invalid!r}")
    records, unfinished = find(runs)
    if not records and not unfinished:
        raise ValueError(f"no run found in {runs}: give run directories, or a folder that contains some")
    found = sections(records, published, invalid)
    if format == "csv":
        return csv_text(found, unfinished)
    return render([make_grid(section, published) for section in found], _missing(unfinished), format, width)


def check_format(form: str) -> None:
    """Raises ValueError for a format that there is not."""
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}: choose one of {', '.join(FORMATS)}")


def check_published(published: bool | str) -> None:
    """Raises ValueError for a choice of published numbers that there is not."""
    if published not in PUBLISHED:
        raise ValueError(f"published must be true, false, verified or all, got {published!r}")


def _missing(unfinished: Sequence[Path]) -> list[str]:
    """What has no record: failed runs with their reason, those that stopped or still run, jobs never started."""
    lines = [f"{standing(run)}: {short_path(run)}{': ' if failure(run) else ''}{failure(run)}" for run in unfinished]
    kinds = ("failed", "unfinished", "never started")
    return [line for kind in kinds for line in capped([line for line in lines if line.startswith(kind)])]


def render(grids: Sequence[Grid], closing: Sequence[str], form: str, width: int | None = None) -> str:
    """Grids, and lines that belong to none of them, as text in any format but csv."""
    if form == "rich":
        return rich_text(grids, closing, width)
    one = {"markdown": markdown, "latex": latex, "html": html_text}[form]
    return "\n\n".join([*map(one, grids), *filter(None, [one(Grid("", [], [], list(closing)))])])
