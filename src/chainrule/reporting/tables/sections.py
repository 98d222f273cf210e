"""Sections: everything that was scored on one test set, and what must be said about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from chainrule.reporting.tables.published import Published, block, neighbours
from chainrule.reporting.tables.records import Record
from chainrule.reporting.tables.rows import Row, differing, group, label
from chainrule.reporting.tables.words import capped, short_path


@dataclass(frozen=True)
class Section:
    """Everything that was scored on one test set."""

    data: str
    side: int
    n: int
    sha256: str
    rows: list[Row]
    published: list[Published]

    @property
    def title(self) -> str:
        return f"{self.data} {self.side}×{self.side}, test set {self.sha256[:8]}: test NLL in nats"

    @cached_property
    def telling(self) -> dict[str, str]:
        """Settings that tell the rows apart, dotted key → short name."""
        return differing(self.rows)

    @property
    def blocks(self) -> list[list[Row | Published]]:
        """Ours, published exact ones, bounds and estimates, invalid ones; empty blocks left out."""
        theirs = [[p for p in self.published if block(p) == k] for k in (1, 2, 3)]
        blocks: list[Sequence[Row | Published]] = [self.rows, *theirs]
        return [list(block) for block in blocks if block]


def sections(records: Iterable[Record], published: bool | str = True, invalid: bool = False) -> list[Section]:
    """Groups records by test set, then into rows; see :func:`neighbours` for the other arguments."""
    sets: dict[tuple[str, int, int, str], list[Record]] = {}
    for r in records:
        sets.setdefault((r.data, r.side, r.n, r.sha256), []).append(r)
    return [
        Section(*key, rows=group(sets[key]), published=neighbours(key[0], *key[2:], published, invalid))
        for key in sorted(sets, key=lambda k: (k[0], -k[1], k[3]))
    ]


def notes(section: Section, published: bool | str) -> list[str]:
    """What a reader must know about a section's numbers, one line each."""
    records = [r for row in section.rows for r in row.records]
    return [
        *_references(section),
        *_comparability(section, published),
        *capped(list(_missing_seeds(section))),
        *capped(list(_doubles(section.rows))),
        *capped(list(_objections(records))),
        *capped(list(_mixed_commits(section))),
        *_uncommitted(records),
        *_machines(records),
    ]


def _references(section: Section) -> Iterator[str]:
    for number, p in enumerate(section.published, 1):
        reason = [f"not a valid likelihood: {p.notes}"] if p.valid_likelihood is False else []
        doubt = [f"may be no likelihood: {p.notes}"] if p.valid_likelihood == "doubtful" else []
        split = [f"scored on {p.split} images"] if p.split != "test" else []
        full = [p.model] if p.model != p.name else []
        yield f"({number}) " + "; ".join(filter(None, [*full, p.cite, p.variant, *split, *reason, *doubt]))
    if not all(p.verified for p in section.published):
        yield "† commonly quoted, not re-read in a source"


def _comparability(section: Section, published: bool | str) -> Iterator[str]:
    if section.published and section.data == "static":
        yield "published figures are on the same 10,000 test images, those of Larochelle's files"
    if section.published and section.data == "dynamic":
        yield "published dynamic figures are on test images of each source's own draw, ours on a fixed draw"
    if published is not False and not section.published:
        yield "no published number is on this test set"


def _missing_seeds(section: Section) -> Iterator[str]:
    seeds = {r.seed for row in section.rows for r in row.records}
    for row in section.rows:
        missing = sorted(seeds - {r.seed for r in row.records})
        if missing:
            yield f"missing: {label(row, section.telling)} has no seed {', '.join(map(str, missing))}"


def _doubles(rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        for r in row.superseded:
            yield f"left out: {short_path(r.path)}, a later run has the same settings and seed {r.seed}"


def _objections(records: Iterable[Record]) -> Iterator[str]:
    for r in records:
        if r.verdict and not r.verdict.certified:
            yield f"not certified: {short_path(r.path)}, {r.verdict.objection}"


def _mixed_commits(section: Section) -> Iterator[str]:
    for row in section.rows:
        commits = sorted({(r.commit or "unknown")[:8] for r in row.records})
        if len(commits) > 1:
            name = label(row, section.telling)
            yield f"{name}: the seeds were run by different versions of the code, {', '.join(commits)}"


def _uncommitted(records: Sequence[Record]) -> Iterator[str]:
    dirty = sum(r.dirty for r in records)
    if dirty:
        yield f"{dirty} of {len(records)} runs came from a checkout with uncommitted changes"


def _machines(records: Iterable[Record]) -> Iterator[str]:
    machines = sorted({r.machine for r in records if r.machine})
    if len(machines) > 1:
        yield f"seconds and images/s are of different machines: {'; '.join(machines)}"
