"""``chainrule tabulate``: the records of finished runs, and published numbers beside them, as tables.

A number stands beside another only when both were computed on the same test images: every table is about
one data set, one size and one SHA-256 of the test images. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from chainrule.reporting.format import capped, nats, printable, short_path, three_digits, value_text, with_error
from chainrule.reporting.published import KINDS, Published, block, nearest, neighbours, published_for
from chainrule.reporting.render import Block, Column, Grid, check_format, csv_text, render
from chainrule.runs import nll
from chainrule.runs.certificate import Verdict, verdict
from chainrule.runs.directory import RunDir, discover
from chainrule.runs.record import Record

PUBLISHED = (True, False, "verified", "all")
LABELS = {1: "published, exact", 2: "published, bounds and estimates", 3: "invalid or doubtful"}


# ---- rows: runs that differ in their seed only --------------------------------------------------------


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
        return min(self.records, key=lambda r: r.nll["valid"].mean if "valid" in r.nll else math.inf)

    @property
    def nll(self) -> float:
        return statistics.fmean(r.test.mean for r in self.records)

    @property
    def over(self) -> Literal["seeds", "images"]:
        """What the standard error is taken over."""
        return "seeds" if len(self.records) > 1 else "images"

    @property
    def stderr(self) -> float:
        if self.over == "images":
            return self.first.test.stderr
        return statistics.stdev(r.test.mean for r in self.records) / math.sqrt(len(self.records))

    @cached_property
    def verdicts(self) -> list[Verdict | None]:
        return [verdict(r.path, r) for r in self.records]

    @property
    def certified(self) -> str:
        """``yes``: every seed is certified; ``no``: one failed; ``–``: none was examined; else how many were."""
        found = [v.certified for v in self.verdicts if v]
        if not found or not all(found):
            return "no" if found else "–"
        return "yes" if len(found) == len(self.records) else f"{len(found)} of {len(self.records)}"

    def mean(self, value: Callable[[Record], float | None]) -> float | None:
        """The mean of a number over the seeds that have it."""
        known = [found for r in self.records if (found := value(r)) is not None]
        return statistics.fmean(known) if known else None


def group(records: Iterable[Record]) -> list[Row]:
    """Rows of runs with the same model, test set, kernel and settings, sorted by test NLL.

    A seed that was run twice counts once, by its latest run.
    """
    rows = [_row(same) for alike in _gather(records, _identity) for same in _unmixed(alike)]
    return sorted(rows, key=lambda row: row.nll)


def _gather(records: Iterable[Record], key: Callable[[Record], str]) -> list[list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.values())


def _identity(r: Record) -> str:
    # An option that is off is the same as none: records of before it was added have none.
    given = sorted((key, value) for key, value in r.settings.items() if value not in (None, 0, False))
    alike = [r.model, r.target, test_set(r), r.kernel, r.parameters.count, r.complete, given]
    return json.dumps(alike, default=str)


def test_set(r: Record) -> tuple[str, int, int, str]:
    """Name, height, width and SHA-256 of the test images."""
    return r.data.title, *r.data.size, r.data.sha256["test"]


def _unmixed(records: list[Record]) -> list[list[Record]]:
    """Mixtures of other members are seeds of one row, unless there are several of one seed."""
    by_members = _gather(records, lambda r: json.dumps(r.config.get("members")))
    seeds = [r.seed for same in by_members for r in {r.seed: r for r in same}.values()]
    return [records] if len(set(seeds)) == len(seeds) else by_members


def _row(records: list[Record]) -> Row:
    latest = {record.seed: record for record in sorted(records, key=lambda r: r.date)}
    kept = tuple(latest[seed] for seed in sorted(latest))
    return Row(kept, tuple(r for r in records if r is not latest[r.seed]))


# ---- labels: what tells rows apart ----------------------------------------------------------------------

PHRASES = {
    "hidden": "{} units", "smoothness": "smooth", "order": "{}", "orders": "{} orders", "max_epochs": "{} epochs",
    "kernel": "{}",
}  # fmt: skip
NAMED = ("members", "of", "model.told")  # in the name of a mixture; said by its orders


def labels(rows: Sequence[Row]) -> list[str]:
    """Each row's model, and behind it what tells the rows of one model apart, as in ``nade, 1000 units, smooth``."""
    found = [row.first.name for row in rows]
    for name in set(found):
        same = [i for i, row in enumerate(rows) if row.first.name == name]
        for i, label in zip(same, _told_apart([rows[i].first for i in same]), strict=True):
            found[i] = label
    return found


def _told_apart(records: Sequence[Record]) -> list[str]:
    """Settings of the model as far as they differ; its order and all others only of rows that are still alike."""
    told = [[] if r.complete else ["partial"] for r in records]

    def tell(said: Sequence[Sequence[str]], everywhere: bool = False) -> None:
        """Adds what is said of a row, where it tells the row from one that was told the same so far."""
        kinds: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
        for t, text in zip(told, said, strict=True):
            kinds.setdefault(tuple(t), set()).add(tuple(text))
        pairs = zip(told, said, strict=True)
        told[:] = [[*t, *text] if everywhere or len(kinds[tuple(t)]) > 1 else t for t, text in pairs]

    for key in differing(records):
        values = [r.settings.get(key) for r in records]
        switch = len({str(value) for value in values if value}) == 1  # it is off, or has this one value
        name = _short(key, records)
        architecture = key == "orders" or (key.startswith("model.") and key != "model.order")
        tell([_phrase(name, value, switch) for value in values], architecture)
    more: Sequence[Callable[[Record], str]] = (
        lambda r: r.target.rpartition(".")[2], lambda r: r.target, lambda r: r.kernel or "no kernel",
        lambda r: f"{three_digits(r.parameters.count / 1e6)}M parameters", lambda r: r.path.resolve().name,
    )  # fmt: skip
    for say in more:
        tell([[say(r)] for r in records])
    return [", ".join([r.name, *t]) for r, t in zip(records, told, strict=True)]


def _short(key: str, records: Sequence[Record]) -> str:
    """The last part of a dotted key, or all of it where other settings end alike."""
    name = key.rpartition(".")[2]
    return name if sum(k.rpartition(".")[2] == name for k in differing(records)) == 1 else key


def _phrase(name: str, value: object, switch: bool) -> list[str]:
    """A setting in words; nothing for one that is off."""
    if value in (None, 0, False):
        return []
    if name in PHRASES and (switch or "{" in PHRASES[name]):
        said = PHRASES[name].format(value_text(value))
        return [said.removesuffix("s") if value == 1 and said.startswith("1 ") else said]
    return [f"{PHRASES.get(name, name)} {value_text(value)}"]


def differing(records: Sequence[Record]) -> list[str]:
    """Dotted keys of settings that differ: the model's first, those of the data, all others; known ones first."""
    keys = {key for r in records for key in r.settings if key not in NAMED}
    rank = {"orders": 0, "model": 1, "data": 2}
    ordered = sorted(
        keys,
        key=lambda key: (
            rank.get(key.partition(".")[0], 3), key == "model.order", key.rpartition(".")[2] not in PHRASES, key
        ),
    )  # fmt: skip
    return [key for key in ordered if len({value_text(r.settings.get(key, "")) for r in records}) > 1]


# ---- sections: everything on one test set ---------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """Everything that was scored on one test set."""

    data: str
    height: int
    width: int
    sha256: str
    rows: list[Row]
    published: list[Published]
    copies: list[tuple[Record, Record]]  # runs with the NLL of every image in common with another: left out

    @property
    def name(self) -> str:
        return f"{self.data} {self.height}×{self.width}"

    @property
    def title(self) -> str:
        return f"{self.name}, test set {self.sha256[:8]}: test NLL in nats"

    @cached_property
    def labels(self) -> list[str]:
        return labels(self.rows)

    @property
    def records(self) -> list[Record]:
        return [r for row in self.rows for r in row.records]


def sections(records: Iterable[Record], published: bool | str = True, invalid: bool = False) -> list[Section]:
    """Groups records by test set, then into rows; see :func:`neighbours` for the other arguments."""
    sets: dict[tuple[str, int, int, str], list[Record]] = {}
    for r in records:
        sets.setdefault(test_set(r), []).append(r)
    found = []
    for (name, height, width, sha256), alike in sorted(sets.items(), key=_rank):
        distinct, copies = _without_copies(alike)
        theirs = neighbours(name, height * width, sha256, published, invalid)
        found.append(Section(name, height, width, sha256, group(distinct), theirs, copies))
    return found


def _rank(found: tuple[tuple[str, int, int, str], object]) -> tuple[bool, str, int, str]:
    """The images that papers use come first, and large ones before small ones."""
    name, height, _, sha256 = found[0]
    return name != "static", name, -height, sha256


def _without_copies(records: Sequence[Record]) -> tuple[list[Record], list[tuple[Record, Record]]]:
    """Runs with the NLL of every image in common are one run."""
    known: dict[str, Record] = {}
    kept, copies = [], []
    for r in sorted(records, key=lambda r: (r.seed, r.date)):
        digest = _nll_sha256(r, records)
        if digest is None or known.setdefault(digest, r) is r:
            kept.append(r)
        else:
            copies.append((r, known[digest]))
    return kept, copies


def _nll_sha256(r: Record, others: Sequence[Record]) -> str | None:
    """Of the NLL of each image, where another run has the same mean and both have the file."""
    if sum(o.test.mean == r.test.mean for o in others) < 2 or not (r.path / nll.FILE).is_file():
        return None
    try:
        return hashlib.sha256(nll.read_array(r.path).tobytes()).hexdigest()
    except ValueError:
        return None  # said by objections


def notes(section: Section, names: Sequence[str], published: bool | str) -> list[str]:
    """What a reader must know about a section's numbers, one line each."""
    return [
        *_references(section),
        *_errors(section, names),
        *_comparability(section, published),
        *_missing_seeds(section, names),
        *capped(list(_left_out(section))),
        *capped(list(objections(section.rows))),
        *capped(list(_mixed_commits(section, names))),
        *_provenance(section, names),
    ]


def _references(section: Section) -> Iterator[str]:
    for number, p in enumerate(section.published, 1):
        reason = [f"not a valid likelihood: {p.notes}"] if p.valid_likelihood is False else []
        doubt = [f"may be no likelihood: {p.notes}"] if p.valid_likelihood == "doubtful" else []
        split = [f"scored on {p.split} images"] if p.split != "test" else []
        full = [p.model] if p.model != p.name else []
        said = [*full, p.cite, p.variant, *split, p.training_set, *reason, *doubt]
        yield f"({number}) " + "; ".join(filter(None, said))
    if not all(p.verified for p in section.published):
        yield "† commonly quoted, could not be read in its source"


def _errors(section: Section, names: Sequence[str]) -> Iterator[str]:
    seeds: dict[int, list[str]] = {}
    for name, row in zip(names, section.rows, strict=True):
        seeds.setdefault(len(row.records), []).append(name)
    for count, rows in sorted(seeds.items()):
        which = "" if len(seeds) == 1 else f": {'; '.join(rows)}"
        yield f"± standard error over {f'{count} seeds' if count > 1 else 'the test images of one seed'}{which}"


def _comparability(section: Section, published: bool | str) -> Iterator[str]:
    if section.published and section.data == "static":
        yield "published figures are on the same 10,000 test images, those of Larochelle's files"
    if section.published and section.data == "dynamic":
        yield "published dynamic figures are on test images of each source's own draw, ours on a fixed draw"
    if published is not False and not section.published:
        yield "no published number is on this test set"


def _missing_seeds(section: Section, names: Sequence[str]) -> Iterator[str]:
    seeds, missing = {r.seed for r in section.records}, dict[str, list[str]]()
    for name, row in zip(names, section.rows, strict=True):
        copied = {r.seed for r, same in section.copies if same in row.records}
        if absent := sorted(seeds - copied - {r.seed for r in row.records}):
            missing.setdefault(", ".join(map(str, absent)), []).append(name)
    for numbers, rows in missing.items():
        yield f"missing: seed {numbers} of {'; '.join(rows)}"


def _left_out(section: Section) -> Iterator[str]:
    for r, same in section.copies:
        yield f"left out: {short_path(r.path)}, one run with {short_path(same.path)}: every image has the same NLL"
    for r in (r for row in section.rows for r in row.superseded):
        yield f"left out: {short_path(r.path)}, a later run has the same settings and seed {r.seed}"


def objections(rows: Sequence[Row]) -> Iterator[str]:
    """What speaks against a number: a certificate that does not hold, or the stored NLL of its images."""
    for row in rows:
        for r, said in zip(row.records, row.verdicts, strict=True):
            if said and not said.certified:
                yield f"not certified: {short_path(r.path)}, {said.objection}"
            if said and said.warning:
                yield f"warning: {short_path(r.path)}, {said.warning}"
            if not said and (r.path / nll.FILE).exists():
                try:
                    nll.read_nll(r)
                except ValueError as error:
                    yield f"warning: {error}"


def _mixed_commits(section: Section, names: Sequence[str]) -> Iterator[str]:
    for name, row in zip(names, section.rows, strict=True):
        commits = sorted({(r.git.commit or "unknown")[:8] for r in row.records})
        if len(commits) > 1:
            yield f"{name}: the seeds were run by different versions of the code, {', '.join(commits)}"


def _provenance(section: Section, names: Sequence[str]) -> Iterator[str]:
    records = section.records
    began = [name for name, row in zip(names, section.rows, strict=True) if row.first.initialized_from]
    if began:
        yield f"began from the weights of another run, whose minutes are not counted: {'; '.join(began)}"
    if dirty := sum(bool(r.git.dirty) for r in records):
        yield f"{dirty} of {len(records)} runs came from a checkout with uncommitted changes"
    if changed := sum(r.code_changed for r in records):
        yield f"{changed} of {len(records)} runs were resumed although the code had changed"
    machines = sorted({str(r.hardware) for r in records if str(r.hardware)})
    if len(machines) > 1:
        yield f"minutes are of different machines: {'; '.join(machines)}"


# ---- columns --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """A column: its head, what rows are sorted by, and how a row of ours and a published one are shown."""

    header: str
    value: Callable[[Row], Any]
    ours: Callable[[Row], str]
    theirs: Callable[[Published], str] = lambda p: ""
    left: bool = False


def _number(
    header: str,
    value: Callable[[Record], float | None],
    shown: Callable[[float], str] = three_digits,
    theirs: Callable[[Published], str] = lambda p: "",
) -> Field:
    """A mean over seeds."""

    def ours(row: Row) -> str:
        mean = row.mean(value)
        return "" if mean is None else shown(mean)

    return Field(header, lambda row: row.mean(value), ours, theirs)


def _text(header: str, value: Callable[[Row], object], letters: int | None = None) -> Field:
    return Field(header, value, lambda row: str(value(row) or "")[:letters], left=True)


def _bits(p: Published) -> float:
    return p.nll / (784 * math.log(2))


def _published_nll(p: Published) -> str:
    sign = {"exact": "", "upper_bound": "≤ ", "estimate": "≈ "}[p.kind]
    return f"{sign}{nats(p.nll)}{'' if p.verified else '†'}"


def _score(split: str) -> Callable[[Record], float | None]:
    return lambda r: r.nll[split].mean if split in r.nll else None


def _sample(r: Record) -> float | None:
    return 1000 * r.sampling.seconds / max(r.sampling.images, 1) if r.sampling else None


def _latency(r: Record) -> float | None:
    return 1000 * r.sampling.latency if r.sampling and r.sampling.latency is not None else None


DEFAULT = ("nll", "published", "bits", "parameters", "minutes", "certified")
FIELDS: dict[str, Field] = {
    "nll": Field("test NLL", lambda row: row.nll, lambda row: with_error(row.nll, row.stderr), _published_nll),
    "bits": _number("bits/ pixel", lambda r: r.bits_per_pixel, "{:.4f}".format, lambda p: f"{_bits(p):.4f}"),
    "parameters": _number("parameters", lambda r: r.parameters.count, "{:,.0f}".format),
    "effective": _number("effective parameters", lambda r: r.parameters.effective, "{:,.0f}".format),
    "minutes": _number("min", lambda r: None if r.seconds is None else r.seconds / 60),
    "seconds": _number("seconds", lambda r: r.seconds),
    "certified": _text("certi- fied", lambda row: row.certified),
    "seeds": _text("seeds", lambda row: ", ".join(str(r.seed) for r in row.records)),
    "best_seed": Field(
        "best seed", lambda row: row.best.test.mean, lambda row: f"{row.best.seed}: {nats(row.best.test.mean)}"
    ),
    "valid": _number("validation NLL", _score("valid"), nats),
    "train": _number("training NLL", _score("train"), nats),
    "epochs": _number("epochs", lambda r: r.epochs, "{:.0f}".format),
    "images_per_second": _number("images/s", lambda r: r.images_per_second),
    "ms_per_sample": _number("ms/ sample", _sample),
    "latency": _number("latency, ms", _latency),
    "kernel": _text("kernel", lambda row: row.first.kernel),
    "order": _text("order", lambda row: row.first.order),
    "machine": _text("machine", lambda row: str(row.first.hardware)),
    "date": _text("date", lambda row: row.best.date, 10),
    "commit": _text("commit", lambda row: row.best.git.commit, 8),
    "command": _text("command", lambda row: row.best.command),
    "path": _text("path", lambda row: short_path(row.best.path)),
}


def _field(name: str, section: Section) -> Field:
    """A column by its name, or one of a setting: its dotted key, or the end of it; empty where no run has it."""
    if name == "published":
        return Field("published", lambda row: _nearest(section, row), lambda row: _nearest(section, row))
    if name in FIELDS:
        return FIELDS[name]
    key = min(_keys(name, section.records), key=len, default="")

    def ours(row: Row) -> str:
        return value_text(row.first.settings[key]) if key in row.first.settings else ""

    return Field(name, lambda row: row.first.settings.get(key, ""), ours, left=True)


def _keys(name: str, records: Iterable[Record]) -> set[str]:
    return {key for r in records for key in r.settings if f".{key}".endswith(f".{name}")}


def check_columns(names: Iterable[str], records: Sequence[Record]) -> None:
    """Raises a ValueError for a column that is none, and no setting of any run."""
    for name in names:
        if name not in ("published", *FIELDS) and not _keys(name, records):
            raise ValueError(f"columns: no {name!r}; there are published, {', '.join(FIELDS)}, and settings such as lr")


def _nearest(section: Section, row: Row) -> str:
    """The published number to hold a row against, and its note."""
    p = nearest([p for p in section.published if p.exact], row.first.model)
    return f"{_published_nll(p)} ({section.published.index(p) + 1})" if p else ""


def make_grid(
    section: Section,
    published: bool | str = True,
    columns: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    sort: str = "nll",
) -> Grid:
    """A section as text; see :func:`tabulate`. Columns of our choice that would be empty are left out."""
    fields = [_field(name, section) for name in columns or DEFAULT]
    named = [_renamed(label, names or {}) for label in section.labels]
    order = _order(section, sort)
    ours = [[named[i], *(f.ours(section.rows[i]) for f in fields)] for i in order]
    blocks = [_block(ours, "", [section.rows[i].nll for i in order], fields)]
    for kind, label in LABELS.items():
        theirs = [p for p in section.published if block(p) == kind]
        lines = [[f"{p.name} ({section.published.index(p) + 1})", *(f.theirs(p) for f in fields)] for p in theirs]
        blocks += [_block(lines, label, [p.nll for p in theirs], fields)] if theirs else []
    kept = [i for i in range(len(fields) + 1) if not i or columns or any(line[i] for b in blocks for line in b.lines)]
    return Grid(
        title=section.title,
        columns=[Column("model", left=True), *(Column(fields[i - 1].header, fields[i - 1].left) for i in kept[1:])],
        blocks=[_kept(b, kept) for b in blocks],
        notes=notes(section, named, published),
    )


def _renamed(label: str, names: Mapping[str, str]) -> str:
    model, comma, rest = label.partition(", ")
    return names.get(label) or f"{names.get(model, model)}{comma}{rest}"


def _order(section: Section, sort: str) -> list[int]:
    """The rows in their new order; those without a value come last."""
    if sort.lstrip("-") == "model":
        return sorted(range(len(section.rows)), key=lambda i: section.labels[i], reverse=sort.startswith("-"))
    values = [_field(sort.removeprefix("-"), section).value(row) for row in section.rows]
    known = [i for i, v in enumerate(values) if v not in (None, "") and v == v]  # noqa: PLR0124 (nan)
    as_number = all(isinstance(values[i], int | float) for i in known)
    known.sort(key=lambda i: values[i] if as_number else str(values[i]), reverse=sort.startswith("-"))
    return [*known, *(i for i in range(len(values)) if i not in known)]


def _block(lines: list[list[str]], label: str, values: Sequence[float], fields: Sequence[Field]) -> Block:
    best = min((v for v in values if v == v), default=None)  # noqa: PLR0124 (nan)
    column = next((k for k, f in enumerate(fields, 1) if f.header == "test NLL"), 0)
    bold = {(i, column) for i, v in enumerate(values) if v == best and column and len(values) > 1}
    return Block(lines, label, frozenset(bold))


def _kept(b: Block, kept: Sequence[int]) -> Block:
    bold = frozenset((i, kept.index(k)) for i, k in b.bold)
    return Block([[line[i] for i in kept] for line in b.lines], b.label, bold)


# ---- tabulate -------------------------------------------------------------------------------------------


def tabulate(
    runs: Sequence[Path | str] | Path | str,
    format: str = "console",  # noqa: A002 (the key in tabulate.yaml)
    *,
    published: bool | str = True,
    invalid: bool = False,
    columns: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    sort: str = "nll",
    per: str = "row",
    partial: bool = False,
    width: int | None = None,
) -> str:
    """Tables of all finished runs under some folders, one for each test set.

    Args:
        runs: run directories, or folders that contain some.
        format: ``console``, ``markdown``, ``latex`` (booktabs) or ``csv``.
        published: beside ours, the best published exact likelihood of each autoregressive model on the same
            test set; ``"verified"`` for figures that were read in their source only; ``"all"`` for bounds,
            estimates and latent-variable models too; False for none.
        invalid: also published figures that are no likelihood, or may be none, with the reason.
        columns: behind the model: keys of :data:`FIELDS`, ``published``, or settings such as ``lr``.
        names: what to call a model, or a whole label.
        sort: a column, with a ``-`` before it for the largest first.
        per: ``row``, or in CSV ``run`` for a line for each run.
        partial: also runs that were trained or scored on some batches only.
        width: of the console, in characters. Default: the terminal's.

    Raises:
        ValueError: an option is unknown, a path does not exist, a record cannot be read, or there is no run.
    """
    check_format(format)
    check_published(published)
    if per not in ("row", "run") or (per == "run" and format != "csv"):
        raise ValueError(f"per must be row, or run with format=csv, got {per!r}")
    for name, value in (("invalid", invalid), ("partial", partial)):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
    if not isinstance(sort, str):
        raise ValueError(f"sort must be a column, got {sort!r}")
    if columns is not None and not _is_text(columns):
        raise ValueError(f"columns must be a list of names, as in columns=[nll,lr], got {columns!r}")
    if names is not None and not (isinstance(names, Mapping) and _is_text([*names, *names.values()])):
        raise ValueError(f"names must be text for text, as in names={{nade: NADE}}, got {names!r}")
    records, unfinished = discover(runs)
    if not records and not unfinished:
        raise ValueError(f"no run found in {runs}: give run directories, or a folder that contains some")
    whole = [r for r in records if r.complete or partial]
    by = sort.removeprefix("-")
    check_columns([*(columns or ()), *([by] if by != "model" else [])], whole)
    found = sections(whole, published, invalid)
    if format == "csv":
        return _csv(found, unfinished, per)
    grids = [make_grid(section, published, columns, names, sort) for section in found]
    return render(grids, left_out([r for r in records if r not in whole], unfinished), format, width)


def _is_text(values: object) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)


def check_published(published: bool | str) -> None:
    """Raises ValueError for a choice of published numbers that there is not."""
    if published not in PUBLISHED:
        raise ValueError(f"published must be true, false, verified or all, got {published!r}")


def left_out(partial: Iterable[Record], unfinished: Sequence[RunDir]) -> list[str]:
    """Runs without a result: partial and failed ones with the reason, those that stopped or still run."""
    lines = [f"partial: {short_path(r.path)}: trained or scored on some batches only" for r in partial]
    lines += [f"{run.status}: {short_path(run.path)}{': ' if run.reason else ''}{run.reason}" for run in unfinished]
    kinds = ("partial", "failed", "unfinished", "never started")
    return [line for kind in kinds for line in capped([line for line in lines if line.startswith(kind)])]


# ---- CSV: one flat table in full precision --------------------------------------------------------------

CSV = {
    "bits_per_pixel": "bits", "parameters": "parameters", "effective_parameters": "effective", "valid_nll": "valid",
    "train_nll": "train", "seconds": "seconds", "images_per_second": "images_per_second",
    "ms_per_sample": "ms_per_sample", "latency_ms": "latency",
}  # fmt: skip


def _csv(found: Sequence[Section], unfinished: Sequence[RunDir], per: str) -> str:
    """``row`` tells our rows, published ones and runs without a result apart."""
    lines: list[dict[str, object]] = []
    for section in found:
        rows = [*zip(section.labels, section.rows, strict=True)]
        if per == "run":
            rows = [(label, Row((r,))) for label, row in rows for r in (*row.records, *row.superseded)]
        place = {"data": section.data, "height": section.height, "width": section.width, "test_sha256": section.sha256}
        keys = differing(section.records) if per == "row" else sorted({k for r in section.records for k in r.settings})
        for label, row in rows:
            config = {f"config.{k}": value_text(row.first.settings[k]) for k in keys if k in row.first.settings}
            lines.append({"row": "run", "label": label, **place, **_csv_ours(row), **config})
        if per == "row":
            lines += [{"row": "published", "label": p.name, **place, **_csv_theirs(p)} for p in section.published]
    if per == "row":
        lines += [{"row": run.status, "run": short_path(run.path), "notes": run.reason} for run in unfinished]
    return csv_text(lines)


def _csv_ours(row: Row) -> dict[str, object]:
    """What is of one run only is of the best seed."""
    first, best = row.first, row.best
    return {
        "model": first.model, "variant": first.name if first.name != first.model else "", "kind": "exact",
        "test_nll": row.nll, "stderr": row.stderr, "stderr_over": row.over,
        "seeds": " ".join(str(r.seed) for r in row.records), "best_seed": best.seed,
        "best_seed_test_nll": best.test.mean, "certified": row.certified,
        **{name: FIELDS[field].value(row) for name, field in CSV.items()},
        "epochs": best.epochs, "best_epoch": best.best_epoch,
        "kernel": first.kernel, "order": first.order, "complete": first.complete, "verified": "true",
        "valid_likelihood": "true", "source": "", "training": "", "notes": "", "run": short_path(best.path),
        "command": best.command, "commit": best.git.commit, "date": best.date, "machine": str(best.hardware),
    }  # fmt: skip


def _csv_theirs(p: Published) -> dict[str, object]:
    return {
        "model": p.model, "variant": p.variant, "kind": KINDS[p.kind], "test_nll": p.nll, "bits_per_pixel": _bits(p),
        "verified": str(p.verified).lower(), "valid_likelihood": str(p.valid_likelihood).lower(), "source": p.cite,
        "training": p.training, "notes": "; ".join(filter(None, [p.notes, p.protocol])),
    }  # fmt: skip


# ---- the table that ends a run --------------------------------------------------------------------------


def summary(record: Record) -> Table:
    """The short table that ends ``chainrule train``: the number, what it cost, and the published one."""
    test, others = record.test, [split for split in ("train", "valid") if split in record.nll]
    p = published_for(record.model, record.data.name) if record.data.n == 784 else None
    epochs = f" for {record.epochs} epoch{'s' * (record.epochs != 1)}" if record.epochs is not None else ""
    speed = f", {three_digits(record.images_per_second)} images/s" if record.images_per_second is not None else ""
    count, effective = record.parameters.count, record.parameters.effective
    height, width = record.data.size
    lines = {
        "test NLL": f"{with_error(test.mean, test.stderr)} nats (standard error over {test.count:,} images)",
        "published": f"{nats(p.nll)} nats ({p.name}, {p.cite}): {p.protocol}" if p else "",
        "bits per pixel": f"{record.bits_per_pixel:.4f}",
        f"{', '.join(others)} NLL": ", ".join(nats(record.nll[split].mean) for split in others) + " nats",
        "parameters": f"{count:,}" + (f" ({effective:,} effective)" if effective != count else ""),
        "seconds": f"{three_digits(record.seconds)}{epochs}{speed}",
        "kernel": record.kernel or "",
        "order": record.order or "",
        "partial": "" if record.complete else "trained or scored on some batches only: no result",
        "test set": f"{record.data.title} {height}×{width}, SHA-256 {record.data.sha256['test'][:12]}…",
    }
    table = Table(title=Text(printable(record.name)), title_justify="left", box=box.HORIZONTALS, show_header=False)
    for name, text in lines.items():
        if text and text != " nats":
            table.add_row(name, Text(printable(text)))
    return table
