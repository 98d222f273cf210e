"""Sections as one flat table in full precision: CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from chainrule.reporting.tables.finding import failure, standing
from chainrule.reporting.tables.published import KINDS, Published
from chainrule.reporting.tables.rows import Row
from chainrule.reporting.tables.sections import Section
from chainrule.reporting.tables.words import short_path, value_text

_Cells = dict[str, object]

COLUMNS = (
    "row", "data", "side", "test_sha256", "model", "variant", "kind", "test_nll", "stderr", "stderr_over", "seeds",
    "best_seed", "best_seed_test_nll", "certified", "bits_per_pixel", "parameters", "effective_parameters", "seconds",
    "images_per_second", "seconds_per_sample", "latency", "kernel", "verified", "valid_likelihood", "source",
    "training", "notes", "run", "command", "commit", "date", "machine",
)  # fmt: skip


def csv_text(found: Sequence[Section], unfinished: Sequence[Path]) -> str:
    """One flat table, full precision: ``row`` tells our rows, published ones, failed and unfinished runs apart."""
    rows: list[_Cells] = [row for section in found for row in _csv_rows(section)]
    rows += [_csv_unfinished(path) for path in unfinished]
    differ = sorted({key for row in rows for key in row} - set(COLUMNS))
    file = io.StringIO()
    writer = csv.DictWriter(file, [*COLUMNS, *differ], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().rstrip("\n")


def _csv_unfinished(run: Path) -> _Cells:
    return {"row": standing(run), "run": short_path(run), "notes": failure(run)}


def _csv_rows(section: Section) -> Iterator[_Cells]:
    place: _Cells = {"data": section.data, "side": section.side}
    for row in section.rows:
        yield {**place, "test_sha256": section.sha256, **_csv_ours(row, section.telling)}
    for p in section.published:
        yield {**place, **_csv_theirs(p)}


def _csv_ours(row: Row, keys: Iterable[str]) -> _Cells:
    """``run``, ``command``, ``commit``, ``date`` and ``machine`` are those of the best seed."""
    first, best = row.first, row.best
    return {
        **{f"config.{key}": value_text(first.settings[key]) for key in keys if key in first.settings},
        "row": "run",
        "model": first.model,
        "variant": first.name if first.name != first.model else "",
        "kind": "exact",
        "test_nll": row.nll,
        "stderr": row.stderr,
        "stderr_over": row.over,
        "seeds": " ".join(str(r.seed) for r in row.records),
        "best_seed": best.seed,
        "best_seed_test_nll": best.nll["test"].mean,
        "certified": row.certified,
        "parameters": first.parameters,
        "effective_parameters": first.effective,
        **{name: row.mean(name) for name in MEANS},
        "kernel": first.kernel,
        "verified": "true",
        "valid_likelihood": "true",
        "run": short_path(best.path),
        "command": best.command,
        "commit": best.commit,
        "date": best.date,
        "machine": best.machine,
    }


MEANS = ("bits_per_pixel", "seconds", "images_per_second", "seconds_per_sample", "latency")


def _csv_theirs(p: Published) -> _Cells:
    return {
        "row": "published",
        "model": p.model,
        "variant": p.variant,
        "kind": KINDS[p.kind],
        "test_nll": p.nll,
        "bits_per_pixel": p.nll / (784 * math.log(2)),
        "verified": str(p.verified).lower(),
        "valid_likelihood": str(p.valid_likelihood).lower(),
        "source": p.cite,
        "training": p.training,
        "notes": "; ".join(filter(None, [p.notes, p.protocol])),
    }
