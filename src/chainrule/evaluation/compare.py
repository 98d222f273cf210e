"""Paired differences of test NLL: which of two models gives the same images more probability, and how sure is that?

An easy image is easy for every model, so differences image by image vary far less than the two NLLs do.
"""

from __future__ import annotations

import csv
import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from chainrule.reporting import tables
from chainrule.reporting.tables.words import nats, short_path, with_error
from chainrule.validate import number

RESAMPLES = 10_000
LEVEL = 0.95
CHUNK = 2_000_000  # resampled images in memory at once


@dataclass(frozen=True)
class Entry:
    """What is compared: one run, or the seeds of one configuration, averaged image by image."""

    row: tables.Row
    nll: np.ndarray  # (N,) nats of each test image


@dataclass(frozen=True)
class Difference:
    """``other`` minus ``reference`` in nats, over the same N test images; negative: ``other`` is better."""

    reference: Entry
    other: Entry
    mean: float
    stderr: float
    low: float  # of the bootstrap interval
    high: float
    level: float
    better: int  # images to which `other` gives more probability
    worse: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def compare(
    runs: Sequence[Path | str] | Path | str, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> list[Difference]:
    """Everything under some folders against the first of them.

    Args:
        runs: run directories, or folders of several. Runs in one folder that differ in their seed only count as one,
            averaged image by image; other runs in it count each for itself, the lowest NLL first.
        resamples: of the bootstrap over images.
        level: of the confidence interval.
        seed: of the bootstrap; the same one gives the same interval.

    Raises:
        ValueError: fewer than two, different test sets, a run without its NLL of each image, or a value out of range.
    """
    _check(resamples, level, seed)
    paths = [runs] if isinstance(runs, str | Path) else runs
    rows = [row for path in paths for row in tables.group(tables.find(path)[0])]
    if len(rows) < 2:
        found = f"{len(rows)} in {', '.join(map(str, paths))}"
        raise ValueError(f"comparing takes at least two finished runs, and there is {found}: runs=DIR,DIR")
    for row in rows[1:]:
        _same_images(rows[0].first, row.first)
    reference, *others = (Entry(row, np.mean([read_nll(r) for r in row.records], axis=0)) for row in rows)
    return [difference(reference, other, resamples, level, seed) for other in others]


def _check(resamples: int, level: float, seed: int) -> None:
    for name, value, kind, low, high in (
        ("resamples", resamples, int, 100, 1_000_000),
        ("level", level, float, 0.5, 0.9999),
        ("seed", seed, int, 0, 2**32 - 1),
    ):
        number(name, value, kind, low, high)


def _same_images(a: tables.Record, b: tables.Record) -> None:
    if a.sha256 != b.sha256:
        raise ValueError(
            f"{_scored(a)}, {_scored(b)}: a paired difference needs the same test images. "
            "Compare runs of one data set and one data.side"
        )


def _scored(r: tables.Record) -> str:
    return f"{short_path(r.path)} was scored on {r.data} {r.side}×{r.side} (SHA-256 {r.sha256[:8]}…)"


def read_nll(record: tables.Record) -> np.ndarray:
    """(N,) nats of each test image, as the run has stored them.

    Raises:
        ValueError: the file is missing or damaged, has infinite numbers, or is not the one of this record.
    """
    file, test = record.path / "nll_test.npz", record.nll["test"]
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            nll = np.asarray(stored["nll"], dtype=np.float64)
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing: the record alone does not have the NLL of each image") from error
    except (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} is damaged: it holds no numbers under the name nll ({error})") from error
    if not np.isfinite(nll).all():
        raise ValueError(f"{file}: {np.sum(~np.isfinite(nll))} images have no finite NLL: nothing can be averaged")
    if nll.shape != (test.count,) or not math.isclose(nll.mean(), test.mean, rel_tol=1e-6):
        raise ValueError(f"{file} is not of this run: {nll.size} images, not the record's {test.count} and their mean")
    return nll


def difference(reference: Entry, other: Entry, resamples: int, level: float, seed: int) -> Difference:
    """The paired difference of two entries that were scored on the same images."""
    d = other.nll - reference.nll
    low, high = interval(d, resamples, level, seed)
    stderr = float(d.std(ddof=1)) / math.sqrt(len(d)) if len(d) > 1 else 0.0
    better, worse = int((d < 0).sum()), int((d > 0).sum())
    return Difference(reference, other, float(d.mean()), stderr, low, high, level, better, worse)


def interval(d: np.ndarray, resamples: int, level: float, seed: int) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean: (N,) numbers, N of them drawn with replacement each time."""
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, step := max(CHUNK // len(d), 1)):
        part = means[start : start + step]
        part[:] = d[rng.integers(len(d), size=(len(part), len(d)), dtype=np.int32)].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# ---- as text ----------------------------------------------------------------------------------------


def table(differences: Sequence[Difference], format: str = "rich", width: int | None = None) -> str:  # noqa: A002
    """Differences from one reference as a table; formats as in :func:`chainrule.reporting.tables.tabulate`."""
    tables.check_format(format)
    return _csv(differences) if format == "csv" else tables.render([_grid(differences)], [], format, width)


def _grid(differences: Sequence[Difference]) -> tables.Grid:
    reference, level = differences[0].reference, differences[0].level
    names = _names([reference, *(d.other for d in differences)])
    first = reference.row.first
    columns = [
        tables.Column("run", left=True),
        tables.Column("test NLL"),
        tables.Column("difference"),
        tables.Column(f"{100 * level:g}% interval"),
        tables.Column("better on"),
        tables.Column("worse on"),
    ]
    head = [names[0], nats(reference.row.nll), *[""] * 4]
    return tables.Grid(
        title=f"{first.data} {first.side}×{first.side}, test set {first.sha256[:8]}: NLL in nats, and differences from "
        f"{names[0]} over the same {len(reference.nll):,} images",
        columns=columns,
        blocks=[tables.Block([head, *(_line(d, name) for d, name in zip(differences, names[1:], strict=True))])],
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
    telling = tables.differing([entry.row for entry in entries])
    folders = [entry.row.first.path.resolve().name for entry in entries]
    clear = len(set(folders)) == len(folders)
    return [_name(entry.row, telling, clear) for entry in entries]


def _name(row: tables.Row, telling: dict[str, str], clear: bool) -> str:
    if row.over == "seeds":
        return f"{tables.label(row, telling)} ({len(row.records)} seeds)"
    return row.first.path.resolve().name if clear else short_path(row.first.path)


def _notes(differences: Sequence[Difference]) -> list[str]:
    notes = ["negative: better than the first; ± is the standard error over images, the interval is a bootstrap's"]
    if any(entry.row.over == "seeds" for d in differences for entry in (d.reference, d.other)):
        notes.append("seeds are averaged image by image; the interval is about images, not about seeds")
    unclear = sum(not d.clear for d in differences)
    if unclear:
        notes.append(f"{unclear} of {len(differences)} intervals include zero: no difference is shown there")
    return notes


def _csv(differences: Sequence[Difference]) -> str:
    file = io.StringIO()
    rows = [_flat(d) for d in differences]
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().rstrip("\n")


def _flat(d: Difference) -> dict[str, object]:
    reference, other = d.reference.row, d.other.row
    return {
        "reference": short_path(reference.first.path),
        "reference_model": reference.first.model,
        "reference_test_nll": reference.nll,
        "run": short_path(other.first.path),
        "model": other.first.model,
        "test_nll": other.nll,
        "difference": d.mean,
        "stderr": d.stderr,
        "low": d.low,
        "high": d.high,
        "level": d.level,
        "better": d.better,
        "worse": d.worse,
        "images": len(d.other.nll),
        "test_sha256": other.first.sha256,
    }
