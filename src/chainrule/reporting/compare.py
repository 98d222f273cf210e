"""``chainrule compare``: which of two models gives the same images more probability, and how sure is that?

An easy image is easy for every model, so differences image by image vary far less than the two NLLs do.
"""

from __future__ import annotations

import logging
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

log = logging.getLogger(__name__)

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
    """Everything under some folders against the first of them that was scored on the same test images.

    Args:
        runs: run directories, or folders of several. Runs in one folder that differ in their seed only count as one,
            averaged image by image; other runs in it count each for itself, the lowest NLL first.

    Raises:
        ValueError: no two runs of one test set, or a run without its NLL of each image.
    """
    paths = [runs] if isinstance(runs, str | Path) else runs
    rows = [row for path in paths for row in group(discover(path)[0])]
    if len(rows) < 2:
        found = f"{len(rows)} in {', '.join(map(str, paths))}"
        raise ValueError(f"comparing takes at least two finished runs, and there is {found}: runs=DIR,DIR")
    sets: dict[str, list[Row]] = {}
    for row in rows:
        sets.setdefault(test_set(row.first)[3], []).append(row)
    alone = [_scored(same[0].first) for same in sets.values() if len(same) == 1]
    if len(alone) == len(sets):
        raise ValueError(
            f"{', '.join(alone)}: a paired difference needs the same test images. "
            "Compare runs of one data set and one data.side"
        )
    for left in alone:
        log.warning("left out, the only one: %s", left)
    differences: list[Difference] = []
    for same in (same for same in sets.values() if len(same) > 1):
        reference, *others = (Entry(row, np.mean([read_nll(r) for r in row.records], axis=0)) for row in same)
        differences += [_difference(reference, other) for other in others]
    return differences


def _scored(r: Record) -> str:
    name, height, width, sha256 = test_set(r)
    return f"{short_path(r.path)} was scored on {name} {height}×{width} (SHA-256 {sha256[:8]}…)"


def _difference(reference: Entry, other: Entry) -> Difference:
    d = other.nll - reference.nll
    estimate = Estimate.of(d)
    return Difference(reference, other, estimate.mean, estimate.stderr, int((d < 0).sum()), int((d > 0).sum()))


def table(differences: Sequence[Difference], format: str = "console", width: int | None = None) -> str:  # noqa: A002
    """Differences as a table for each test set; formats as in :func:`chainrule.reporting.tables.tabulate`."""
    check_format(format)
    sets: dict[int, list[Difference]] = {}
    for d in differences:
        sets.setdefault(id(d.reference), []).append(d)
    named = [(same, _names([same[0].reference, *(d.other for d in same)])) for same in sets.values()]
    if format == "csv":
        return csv_text(
            [_flat(d, names[0], name) for same, names in named for d, name in zip(same, names[1:], strict=True)]
        )
    return render([_grid(same, names) for same, names in named], [], format, width)


def _grid(differences: Sequence[Difference], names: Sequence[str]) -> Grid:
    reference = differences[0].reference
    data, height, wide, sha256 = test_set(reference.row.first)
    header = ("test NLL", "difference", "95% interval", "better on", "worse on")
    head = [names[0], nats(reference.row.nll), *[""] * 4]
    return Grid(
        title=f"{data} {height}×{wide}, test set {sha256[:8]}: NLL in nats, and differences from "
        f"{names[0]} over the same {len(reference.nll):,} images",
        columns=[Column("run", left=True), *map(Column, header)],
        blocks=[Block([head, *(_line(d, name) for d, name in zip(differences, names[1:], strict=True))])],
        notes=_notes(differences),
    )


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
