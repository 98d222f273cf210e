"""Rows: runs that differ in their seed only."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from chainrule.reporting.tables.records import Record
from chainrule.reporting.tables.words import value_text


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed only: one line of a table. Every figure is a mean over the seeds."""

    records: tuple[Record, ...]  # one for each seed, in the order of the seeds
    superseded: tuple[Record, ...] = ()  # older runs of the same seed

    @property
    def first(self) -> Record:
        return self.records[0]

    @property
    def best(self) -> Record:
        """The seed with the lowest validation NLL; the test set selects nothing."""
        return min(self.records, key=lambda r: nan_last(r.nll["valid"].mean if "valid" in r.nll else math.nan))

    @property
    def nll(self) -> float:
        return statistics.fmean(r.nll["test"].mean for r in self.records)

    @property
    def over(self) -> Literal["seeds", "images"]:
        """What the standard error is taken over."""
        return "seeds" if len(self.records) > 1 else "images"

    @property
    def stderr(self) -> float:
        if self.over == "images":
            return self.first.nll["test"].stderr
        means = [r.nll["test"].mean for r in self.records]
        if not all(map(math.isfinite, means)):
            return math.nan
        return statistics.stdev(means) / math.sqrt(len(means))

    @property
    def certified(self) -> str:
        """``yes``: every seed is certified; ``no``: one failed; ``–``: none was examined; else how many were."""
        verdicts = [r.verdict.certified for r in self.records if r.verdict]
        if not verdicts or not all(verdicts):
            return "no" if verdicts else "–"
        return "yes" if len(verdicts) == len(self.records) else f"{len(verdicts)} of {len(self.records)}"

    def mean(self, name: str) -> float | None:
        """The mean of a number over the seeds that have it."""
        known = [value for r in self.records if (value := getattr(r, name)) is not None]
        return statistics.fmean(known) if known else None


def group(records: Iterable[Record]) -> list[Row]:
    """Rows of runs with the same model, test set, kernel and settings, sorted by test NLL.

    A seed that was run twice counts once, by its latest run.
    """
    rows = [_row(same) for alike in _gather(records, _identity) for same in _unmixed(alike)]
    return sorted(rows, key=lambda row: nan_last(row.nll))


def _gather(records: Iterable[Record], key: Callable[[Record], str]) -> list[list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.values())


def _identity(r: Record) -> str:
    return _text([r.model, r.data, r.side, r.sha256, r.kernel, r.parameters, sorted(r.settings.items())])


def _unmixed(records: list[Record]) -> list[list[Record]]:
    """Mixtures of other members are seeds of one row, unless there are several of one seed."""
    by_members = _gather(records, lambda r: _text(r.raw["config"].get("members")))
    seeds = [r.seed for same in by_members for r in {r.seed: r for r in same}.values()]
    return [records] if len(set(seeds)) == len(seeds) else by_members


def _row(records: list[Record]) -> Row:
    latest: dict[int, Record] = {}
    for record in sorted(records, key=lambda r: r.date):
        latest[record.seed] = record
    kept = tuple(latest[seed] for seed in sorted(latest))
    return Row(kept, tuple(r for r in records if r is not latest[r.seed]))


def nan_last(value: float) -> tuple[bool, float]:
    return math.isnan(value), value


def label(row: Row, telling: Mapping[str, str]) -> str:
    """A row in words: its name, and those of the settings in ``telling`` that it has."""
    found = {name: row.first.settings[key] for key, name in telling.items() if key in row.first.settings}
    return " ".join([row.first.name, *(f"{name}={value_text(value)}" for name, value in found.items())])


def differing(rows: Sequence[Row]) -> dict[str, str]:
    """Settings that tell rows apart, dotted key → the shortest name that is clear among them."""
    records = [row.first for row in rows]
    keys = sorted({key for r in records for key in r.settings})
    telling = [key for key in keys if _tells(key, records)]
    return {key: _short(key, telling) for key in telling}


def _tells(key: str, records: Sequence[Record]) -> bool:
    """Whether a setting tells two runs apart that no setting above it tells apart already.

    A setting that only one of them has (the momentum of sgd) follows from its parent (the optimizer); all of a
    training follow from not being a mixture, whose name says what it mixes.
    """
    if key in NAMED:
        return False
    if len({_text(r.settings[key]) for r in records if key in r.settings}) > 1:
        return True
    having = {_parent(key, r) for r in records if key in r.settings}
    return not having.isdisjoint(_parent(key, r) for r in records if key not in r.settings)


NAMED = ("members", "of")


def _parent(key: str, r: Record) -> tuple[bool, str]:
    parent = key.rpartition(".")[0]
    return "members" in r.settings, r.model if parent == "model" else _text(r.settings.get(parent))


def _text(value: object) -> str:
    return json.dumps(value, default=str)


def _short(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")
    names = [".".join(parts[-k:]) for k in range(1, len(parts) + 1)]
    taken = {"model", "kernel", "kind", "parameters", "seconds", "certified"}
    clear = (s for s in names if s not in taken and sum(f".{k}".endswith(f".{s}") for k in keys) == 1)
    return next(clear, key)
