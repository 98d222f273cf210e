"""``chainrule compare``: which of two models gives the same images more probability, and how sure is that?

An easy image is easy for every model, so differences image by image vary far less than the two NLLs do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chainrule.reporting.format import nats, short_path, with_error
from chainrule.reporting.render import Block, Column, Grid, check_format, csv_text, render
from chainrule.reporting.tables import Row, group, labels, objections, test_set
from chainrule.runs.directory import discover
from chainrule.runs.nll import read_nll
from chainrule.runs.record import Estimate, Record

Z = 1.96  # standard errors on either side of a mean: 95% of a normal distribution


@dataclass(frozen=True)
class Entry:
    """What is compared: one run, or the seeds of one configuration, averaged image by image."""

    row: Row
    nll: NDArray[np.float64]  # (N,) nats of each test image


@dataclass(frozen=True)
class Difference:
    """``other`` minus ``reference`` in nats, over the same N test images; negative: ``other`` is better."""

    reference: Entry
    other: Entry
    mean: float
    stderr: float
    better: int  # images to which `other` gives more probability
    worse: int

    @property
    def low(self) -> float:
        return self.mean - Z * self.stderr

    @property
    def high(self) -> float:
        return self.mean + Z * self.stderr

    @property
    def clear(self) -> bool:
        """Whether the 95% interval excludes zero."""
        return self.low > 0 or self.high < 0


def compare(runs: Sequence[Path | str] | Path | str) -> list[Difference]:
    """Everything under some folders against the first of them.

    Args:
        runs: run directories, or folders of several. Runs in one folder that differ in their seed only count as one,
            averaged image by image; other runs in it count each for itself, the lowest NLL first.

    Raises:
        ValueError: fewer than two, different test sets, or a run without its NLL of each image.
    """
    paths = [runs] if isinstance(runs, str | Path) else runs
    rows = [row for path in paths for row in group(discover(path)[0])]
    if len(rows) < 2:
        found = f"{len(rows)} in {', '.join(map(str, paths))}"
        raise ValueError(f"comparing takes at least two finished runs, and there is {found}: runs=DIR,DIR")
    for row in rows[1:]:
        _check_images(rows[0].first, row.first)
    reference, *others = (Entry(row, np.mean([read_nll(r) for r in row.records], axis=0)) for row in rows)
    return [_difference(reference, other) for other in others]


def _check_images(a: Record, b: Record) -> None:
    if test_set(a)[3] != test_set(b)[3]:
        scored = [
            f"{short_path(r.path)} was scored on {name} {height}×{width} (SHA-256 {sha256[:8]}…)"
            for r, (name, height, width, sha256) in ((r, test_set(r)) for r in (a, b))
        ]
        raise ValueError(
            f"{', '.join(scored)}: a paired difference needs the same test images. "
            "Compare runs of one data set and one data.side"
        )


def _difference(reference: Entry, other: Entry) -> Difference:
    d = other.nll - reference.nll
    estimate = Estimate.of(d)
    return Difference(reference, other, estimate.mean, estimate.stderr, int((d < 0).sum()), int((d > 0).sum()))


def table(differences: Sequence[Difference], format: str = "console", width: int | None = None) -> str:  # noqa: A002
    """Differences from one reference as a table; formats as in :func:`chainrule.reporting.tables.tabulate`."""
    check_format(format)
    reference = differences[0].reference
    names = _names([reference, *(d.other for d in differences)])
    if format == "csv":
        return csv_text([_flat(d, names[0], name) for d, name in zip(differences, names[1:], strict=True)])
    data, height, wide, sha256 = test_set(reference.row.first)
    header = ("test NLL", "difference", "95% interval", "better on", "worse on")
    head = [names[0], nats(reference.row.nll), *[""] * 4]
    grid = Grid(
        title=f"{data} {height}×{wide}, test set {sha256[:8]}: NLL in nats, and differences from "
        f"{names[0]} over the same {len(reference.nll):,} images",
        columns=[Column("run", left=True), *map(Column, header)],
        blocks=[Block([head, *(_line(d, name) for d, name in zip(differences, names[1:], strict=True))])],
        notes=_notes(differences),
    )
    return render([grid], [], format, width)


def _line(d: Difference, name: str) -> list[str]:
    mean = with_error(d.mean, d.stderr)
    digits = len(mean.partition(" ")[0].partition(".")[2])
    low, high = (f"{value:+.{digits}f}" for value in (d.low, d.high))
    sign = "+" if d.mean > 0 else ""
    return [name, nats(d.other.row.nll), sign + mean, f"{low} to {high}", f"{d.better:,}", f"{d.worse:,}"]


def _names(entries: Sequence[Entry]) -> list[str]:
    """Directories where these are clear, the configuration where several seeds are one entry."""
    told = labels([entry.row for entry in entries])
    folders = [entry.row.first.path.resolve().name for entry in entries]
    clear = len(set(folders)) == len(folders)
    paths = folders if clear else [short_path(entry.row.first.path) for entry in entries]
    return [
        f"{label} ({len(entry.row.records)} seeds)" if entry.row.over == "seeds" else path
        for entry, label, path in zip(entries, told, paths, strict=True)
    ]


def _notes(differences: Sequence[Difference]) -> list[str]:
    notes = ["negative: better than the first; ± is the standard error over images, the interval is 1.96 of them"]
    if any(entry.row.over == "seeds" for d in differences for entry in (d.reference, d.other)):
        notes.append("seeds are averaged image by image; the interval is about images, not about seeds")
    notes += objections([differences[0].reference.row, *(d.other.row for d in differences)])
    if unclear := sum(not d.clear for d in differences):
        notes.append(f"{unclear} of {len(differences)} intervals include zero: no difference is shown there")
    return notes


def _flat(d: Difference, reference: str, name: str) -> dict[str, object]:
    return {
        "reference": reference,
        "reference_run": short_path(d.reference.row.first.path),
        "reference_test_nll": d.reference.row.nll,
        "name": name,
        "run": short_path(d.other.row.first.path),
        "test_nll": d.other.row.nll,
        "difference": d.mean,
        "stderr": d.stderr,
        "low": d.low,
        "high": d.high,
        "better": d.better,
        "worse": d.worse,
        "images": len(d.other.nll),
        "test_sha256": test_set(d.other.row.first)[3],
    }
