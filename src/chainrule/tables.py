"""Result records + published numbers → tables.

A number stands next to another only when both were computed on the same test images: every table is about
one data set, one size and one SHA-256 of the test set. Nothing here needs torch.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import shutil
import statistics
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped, unused-ignore]
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

SCHEMA = 1  # of result.json; a change of meaning adds one
FORMATS = ("rich", "markdown", "latex", "csv", "html")

# Configuration that changes where, how loudly or how fast a number is computed, but not the number.
IGNORED = (
    "seed", "name", "*run_name", "*run_dir", "tags", "notes", "experiment", "samples", "paths.*", "hydra.*",
    "logger", "logger.*", "trainer.logger*", "trainer.enable_*", "trainer.default_root_dir", "trainer.profiler",
    "trainer.log_every_n_steps", "callbacks.*checkpoint*", "callbacks.*progress*", "callbacks.*summary*",
    "callbacks.*images*", "callbacks.*samples*", "model", "model.kernel", "model.block", "data", "data.name",
    "data.side", "*_dir", "*.root", "*.download", "*.fused", "*.num_workers", "*.verbose", "*._partial_",
    "*._convert_", "*._recursive_",
)  # fmt: skip

AUTOREGRESSIVE = ("fvsbn", "nade", "deep_nade", "conv_nade", "made", "pixelcnn", "pixelrnn", "transformer")

DATA = {
    "static": "static test set (Larochelle's files)",
    "dynamic": "dynamic test set (re-drawn from the gray levels by each source)",
    "unknown": "test set not named by the source",
}
KINDS = {"exact": "exact", "upper_bound": "bound", "estimate": "estimate"}


# ---- records ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its standard error, in nats."""

    mean: float
    stderr: float
    count: int


@dataclass(frozen=True)
class Record:
    """One finished run, as its result.json has it; ``raw`` is the whole of it."""

    path: Path
    model: str
    kernel: str | None
    parameters: int
    effective: int
    data: str
    side: int
    n: int
    sha256: str  # of the test set
    seed: int
    nll: Mapping[str, Estimate]  # of train, valid and test
    bits_per_pixel: float
    epochs: int
    seconds: float
    images_per_second: float
    latency: float | None  # seconds for each sampled image
    date: str
    commit: str | None
    settings: Mapping[str, object]
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class _Fields:
    """Typed access to nested JSON by dotted names; what is wrong is an error that names file and field."""

    raw: object
    file: Path

    def get(self, name: str, what: str, *types: type) -> Any:  # noqa: ANN401
        value = self.raw
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{self.file}: field {name} is missing")
            value = value[key]
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"{self.file}: field {name} must be {what}, got {value!r:.60}")
        return value

    def text(self, name: str) -> str:
        return str(self.get(name, "a string", str))

    def text_or_null(self, name: str) -> str | None:
        value = self.get(name, "a string or null", str, type(None))
        return None if value is None else str(value)

    def whole(self, name: str) -> int:
        return int(self.get(name, "a whole number", int))

    def number(self, name: str) -> float:
        return float(self.get(name, "a number", int, float))

    def estimate(self, name: str) -> Estimate:
        return Estimate(self.number(f"{name}.mean"), self.number(f"{name}.stderr"), self.whole(f"{name}.count"))

    def has(self, name: str) -> bool:
        return isinstance(self.raw, dict) and self.raw.get(name) is not None


def read_record(path: Path | str) -> Record:
    """Reads the record of a finished run.

    Args:
        path: a run directory, or its result.json.

    Raises:
        ValueError: the file is no JSON, a field is missing or of the wrong type, or the schema is newer than
            this program's. The message names the file and the field.
    """
    file = Path(path) / "result.json" if Path(path).is_dir() else Path(path)
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{file}: is no valid JSON ({error})") from error
    return parse(raw, file)


def parse(raw: Mapping[str, Any], file: Path | str = "result.json") -> Record:
    """A record from the contents of a result.json; ``file`` is named in errors.

    Raises:
        ValueError: as :func:`read_record`.
    """
    get = _Fields(raw, Path(file))
    if get.whole("schema") > SCHEMA:
        raise ValueError(f"{file}: has schema {raw['schema']}, this chainrule reads up to {SCHEMA}: upgrade chainrule")
    return Record(
        path=Path(file).parent,
        model=get.text("model"),
        kernel=get.text_or_null("kernel"),
        parameters=get.whole("parameters.count"),
        effective=get.whole("parameters.effective"),
        data=get.text("data.name"),
        side=get.whole("data.side"),
        n=get.whole("data.n"),
        sha256=get.text("data.sha256.test"),
        seed=get.whole("seed"),
        nll={split: get.estimate(f"nll.{split}") for split in ("train", "valid", "test")},
        bits_per_pixel=get.number("bits_per_pixel"),
        epochs=get.whole("epochs"),
        seconds=get.number("seconds"),
        images_per_second=get.number("images_per_second"),
        latency=_latency(get),
        date=get.text("date"),
        commit=get.text_or_null("git.commit"),
        settings=settings(get.get("config", "a mapping", dict)),
        raw=raw,
    )


def _latency(get: _Fields) -> float | None:
    if not get.has("sampling"):
        return None
    return get.number("sampling.seconds") / max(get.whole("sampling.images"), 1)


def settings(config: Mapping[str, Any]) -> dict[str, object]:
    """The configuration flattened to dotted keys, without what does not change the number.

    A ``_target_`` becomes the value of its parent: ``optimizer: AdamW``, ``optimizer.lr: 0.001``.
    """
    return {key: value for key, value in _flatten(config) if not any(fnmatch(key, p) for p in IGNORED)}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in config.items():
        key = f"{prefix}{name}"
        if name == "_target_" and prefix:
            yield prefix[:-1], str(value).rpartition(".")[2]
        elif isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value or None if isinstance(value, Mapping) else value


def find(runs: Sequence[Path | str] | Path | str) -> tuple[list[Record], list[Path]]:
    """Searches folders for run directories.

    Args:
        runs: run directories, folders that contain some at any depth, or result.json files.

    Returns:
        The records of finished runs, and the directories of unfinished ones (config.yaml, no result.json).

    Raises:
        ValueError: a path does not exist, or a record cannot be read.
    """
    records: dict[Path, Record] = {}
    unfinished: dict[Path, Path] = {}
    for run in [runs] if isinstance(runs, str | Path) else runs:
        for path, finished in _run_directories(Path(run)):
            if finished:
                records.setdefault(path.resolve(), read_record(path))
            else:
                unfinished.setdefault(path.resolve(), path)
    return list(records.values()), list(unfinished.values())


def _run_directories(top: Path) -> Iterator[tuple[Path, bool]]:
    if not top.exists():
        raise ValueError(f"{top} does not exist: give run directories, or a folder that contains some")
    if top.is_file():
        yield top.parent if top.name == "result.json" else top, True
    for folder, subfolders, files in os.walk(top):
        if "result.json" in files or "config.yaml" in files:
            yield Path(folder), "result.json" in files
            subfolders.clear()  # W&B keeps a config.yaml of its own further down
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


# ---- rows: runs that differ in their seed only ------------------------------------------------------


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
        return min(self.records, key=lambda r: _nan_last(r.nll["valid"].mean))

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
    def latency(self) -> float | None:
        known = [r.latency for r in self.records if r.latency is not None]
        return statistics.fmean(known) if known else None

    def mean(self, name: str) -> float:
        return statistics.fmean(getattr(r, name) for r in self.records)


def group(records: Iterable[Record]) -> list[Row]:
    """Rows of runs with the same model, test set, kernel and settings, sorted by test NLL.

    A seed that was run twice counts once, by its latest run.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_identity(record), []).append(record)
    return sorted(map(_row, groups.values()), key=lambda row: _nan_last(row.nll))


def _identity(r: Record) -> str:
    key = [r.model, r.data, r.side, r.sha256, r.kernel, sorted(r.settings.items())]
    return json.dumps(key, default=str)


def _row(records: list[Record]) -> Row:
    latest: dict[int, Record] = {}
    for record in sorted(records, key=lambda r: r.date):
        latest[record.seed] = record
    kept = tuple(latest[seed] for seed in sorted(latest))
    return Row(kept, tuple(r for r in records if r is not latest[r.seed]))


def _nan_last(value: float) -> tuple[bool, float]:
    return math.isnan(value), value


def differing(rows: Sequence[Row]) -> dict[str, str]:
    """Settings that tell rows apart, dotted key → the shortest name that is clear among them."""
    keys = sorted({key for row in rows for key in row.first.settings})
    telling = [k for k in keys if any(_tells(k, a.first, b.first) for a, b in combinations(rows, 2))]
    return {key: _short(key, telling) for key in telling}


def _tells(key: str, a: Record, b: Record) -> bool:
    """Whether a setting tells two runs apart that no setting above it tells apart already.

    A setting that only one of them has (the momentum of sgd) follows from its parent (the optimizer).
    """
    if (key in a.settings) == (key in b.settings):
        return a.settings.get(key) != b.settings.get(key)
    parent = key.rpartition(".")[0]
    if parent == "model":
        return a.model == b.model
    return a.settings.get(parent) == b.settings.get(parent)


def _short(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")
    names = [".".join(parts[-k:]) for k in range(1, len(parts) + 1)]
    taken = {"model", "kernel", "kind", "parameters", "seconds"}
    clear = (s for s in names if s not in taken and sum(f".{k}".endswith(f".{s}") for k in keys) == 1)
    return next(clear, key)


# ---- published numbers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A number from the literature, in nats per image of 784 pixels; see the legend in published.yaml."""

    model: str
    variant: str
    family: str
    data: str
    nll: float
    kind: str
    verified: bool
    cite: str
    paper: str
    source: str = ""
    valid_likelihood: bool | str = True
    split: str = "test"
    error_bar: str = ""
    params: str = ""
    training: str = ""
    notes: str = ""
    remark: str = ""

    @property
    def name(self) -> str:
        """The model without what its source adds in brackets."""
        return self.model.partition(" (")[0]

    @property
    def valid(self) -> bool:
        return self.valid_likelihood is True

    @property
    def exact(self) -> bool:
        """A valid, exact likelihood of test images."""
        return self.kind == "exact" and self.valid and self.split == "test"

    @property
    def protocol(self) -> str:
        """What was scored and how, in words."""
        caveat = "" if self.verified else "commonly quoted, not re-read in a source"
        split = "" if self.split == "test" else f"scored on {self.split} images"
        return "; ".join(filter(None, [f"{DATA[self.data]}, {KINDS[self.kind]}", split, caveat, self.remark]))


@cache
def published_numbers() -> tuple[Published, ...]:
    """All rows of published.yaml."""
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    return tuple(Published(**row) for row in yaml.safe_load(text))


def published_for(model: str, data: str) -> Published | None:
    """The number to hold a model against: exact, valid, and where possible read in its source.

    The same data set comes before the static one, a row of that very name before one of its family, a
    verified row before an unverified one, then the lowest NLL. ``protocol`` says which test set it is on.
    """
    near = [p for p in published_numbers() if p.exact and p.data in (data, "static") and _akin(p, model)]
    if not near:
        return None
    best = min(near, key=lambda p: (p.data != data, _slug(p.model) != _slug(model), not p.verified, p.nll))
    return best if best.data == data else replace(best, remark=f"a different test set than {data}")


def _akin(p: Published, model: str) -> bool:
    return _slug(model) in (_slug(p.family), _slug(p.model))


def _slug(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def neighbours(data: str, n: int, which: bool | str, invalid: bool) -> list[Published]:
    """Published rows on the same data set: exact ones first, then bounds and estimates, then invalid ones.

    Args:
        data: name of the data set; only ``static`` and ``dynamic`` are published test sets.
        n: pixels; published numbers are for 784.
        which: True for the best exact likelihood of each autoregressive model, ``"all"``, or False.
        invalid: also rows whose likelihood is none, or may be none.
    """
    same = [p for p in published_numbers() if p.data == data and n == 784 and which is not False]
    shown = [p for p in same if p.valid] if which == "all" else _leaders(same)
    shown += [p for p in same if invalid and not p.valid]
    return sorted(shown, key=lambda p: (_block(p), p.nll))


def _leaders(rows: Iterable[Published]) -> list[Published]:
    leaders: dict[str, Published] = {}
    for p in sorted(rows, key=lambda p: (not p.verified, p.nll)):
        if p.exact and p.family in AUTOREGRESSIVE:
            leaders.setdefault(p.model, p)
    return list(leaders.values())


def _block(p: Published) -> int:
    return 1 if p.exact else 2 if p.valid else 3


# ---- sections: one test set each --------------------------------------------------------------------


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

    @property
    def blocks(self) -> list[list[Row | Published]]:
        """Ours, published exact ones, bounds and estimates, invalid ones; empty blocks left out."""
        theirs = [[p for p in self.published if _block(p) == k] for k in (1, 2, 3)]
        blocks: list[Sequence[Row | Published]] = [self.rows, *theirs]
        return [list(block) for block in blocks if block]


def sections(records: Iterable[Record], published: bool | str = True, invalid: bool = False) -> list[Section]:
    """Groups records by test set, then into rows; see :func:`neighbours` for the other arguments."""
    sets: dict[tuple[str, int, int, str], list[Record]] = {}
    for r in records:
        sets.setdefault((r.data, r.side, r.n, r.sha256), []).append(r)
    return [
        Section(*key, rows=group(sets[key]), published=neighbours(key[0], key[2], published, invalid))
        for key in sorted(sets, key=lambda k: (k[0], -k[1], k[3]))
    ]


def _notes(section: Section, published: bool | str) -> list[str]:
    return [
        *_references(section),
        *_comparability(section, published),
        *_missing_seeds(section),
        *_doubles(section.rows),
        *_mixed_commits(section.rows),
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
    if section.published and section.data == "dynamic":
        yield "published dynamic figures are on test images of each source's own draw, ours on a fixed draw"
    if published is not False and not section.published:
        yield "no published number is on this test set"


def _missing_seeds(section: Section) -> Iterator[str]:
    seeds = {r.seed for row in section.rows for r in row.records}
    for row in section.rows:
        missing = sorted(seeds - {r.seed for r in row.records})
        if missing:
            yield f"missing: {_label(row, section)} has no seed {', '.join(map(str, missing))}"


def _doubles(rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        for r in row.superseded:
            yield f"left out: {_path(r.path)}, a later run has the same settings and seed {r.seed}"


def _mixed_commits(rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        commits = sorted({(r.commit or "unknown")[:8] for r in row.records})
        if len(commits) > 1:
            yield f"{row.first.model}: the seeds were run by different versions of the code, {', '.join(commits)}"


def _label(row: Row, section: Section) -> str:
    shown = [f"{name}={_value(row.first.settings[key])}" for key, name in differing(section.rows).items()
             if key in row.first.settings]  # fmt: skip
    return " ".join([row.first.model, *shown])


def _path(path: Path) -> str:
    here = Path.cwd()
    return str(path.resolve().relative_to(here)) if path.resolve().is_relative_to(here) else str(path)


# ---- cells ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column: how it shows a row of ours and a published one."""

    header: str
    ours: Callable[[Row], str]
    theirs: Callable[[Published], str] = lambda p: ""
    left: bool = False
    spare: int = 0  # where a console is too narrow, the highest goes first; 0 never goes

    def cell(self, row: Row | Published) -> str:
        return self.ours(row) if isinstance(row, Row) else self.theirs(row)


@dataclass(frozen=True)
class Grid:
    """A table as text: what every format renders."""

    title: str
    columns: list[Column]
    blocks: list[list[list[str]]]
    notes: list[str]


def _grid(section: Section, published: bool | str) -> Grid:
    columns = _columns(section)
    blocks = [[[c.cell(row) for c in columns] for row in block] for block in section.blocks]
    kept = [i for i in range(len(columns)) if any(line[i] for block in blocks for line in block)]
    return Grid(
        title=section.title,
        columns=[columns[i] for i in kept],
        blocks=[[[line[i] for i in kept] for line in block] for block in blocks],
        notes=_notes(section, published),
    )


def _columns(section: Section) -> list[Column]:
    numbers = {id(p): k for k, p in enumerate(section.published, 1)}
    kind = "exact" if section.published else ""
    return [
        Column("model", lambda r: r.first.model, lambda p: f"{p.name} ({numbers[id(p)]})", left=True),
        *(_setting(key, name) for key, name in differing(section.rows).items()),
        Column("test NLL", lambda r: f"{_nats(r.nll)} ± {_nats(r.stderr, r.nll)}", _published_nll),
        Column("± over", lambda r: f"{len(r.records)} seeds" if r.over == "seeds" else "images", left=True),
        Column("kind", lambda r: kind, _kind, left=True),
        Column("best seed", _best_seed, spare=2),
        Column("bits/ pixel", lambda r: f"{r.mean('bits_per_pixel'):.4f}", _published_bits, spare=3),
        Column("parameters", lambda r: f"{r.first.parameters:,}", spare=1),
        Column("seconds", lambda r: _three(r.mean("seconds")), spare=4),
        Column("images/s", lambda r: _three(r.mean("images_per_second")), spare=5),
        Column("ms per sample", lambda r: "" if r.latency is None else _three(1000 * r.latency), spare=7),
        Column("kernel", lambda r: r.first.kernel or "", left=True, spare=6),
    ]


def _setting(key: str, name: str) -> Column:
    return Column(name, lambda r: _value(r.first.settings[key]) if key in r.first.settings else "", left=True)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"{_value(value[0])}, … ({len(value)} values)"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _nats(value: float, like: float | None = None) -> str:
    return f"{value:.{3 if abs(value if like is None else like) < 10 else 2}f}"


def _published_nll(p: Published) -> str:
    sign = {"exact": "", "upper_bound": "≤ ", "estimate": "≈ "}[p.kind]
    return f"{sign}{_nats(p.nll)}{'' if p.verified else '†'}"


def _published_bits(p: Published) -> str:
    return f"{p.nll / (784 * math.log(2)):.4f}"


def _kind(p: Published) -> str:
    if not p.valid:
        return "invalid" if p.valid_likelihood is False else "doubtful"
    return KINDS[p.kind] if p.split == "test" else f"{KINDS[p.kind]}, {p.split}"


def _best_seed(row: Row) -> str:
    return f"{row.best.seed}: {_nats(row.best.nll['test'].mean)}" if row.over == "seeds" else ""


def _three(value: float) -> str:
    """About three significant digits, large numbers in full."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


# ---- formats ----------------------------------------------------------------------------------------


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
            test set; ``"all"`` for bounds, estimates and latent-variable models too; False for none.
        invalid: also published figures that are no likelihood, or may be none, with the reason.
        width: of the console, in characters; only for ``rich``. Default: the terminal's.

    Raises:
        ValueError: the format is unknown, a path does not exist, a record cannot be read, or there is no run.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}")
    if published not in (True, False, "all"):
        raise ValueError(f"published must be true, false or all, got {published!r}")
    records, unfinished = find(runs)
    if not records and not unfinished:
        raise ValueError(f"no run found in {runs}: give run directories, or a folder that contains some")
    found = sections(records, published, invalid)
    if format == "csv":
        return _csv(found, unfinished)
    grids = [_grid(section, published) for section in found]
    closing = [f"unfinished, not in the tables: {_path(path)}" for path in unfinished]
    if format == "rich":
        return _rich(grids, closing, width)
    render = {"markdown": _markdown, "latex": _latex, "html": _html}[format]
    return "\n\n".join([*map(render, grids), *filter(None, [render(Grid("", [], [], closing))])])


def _rich(grids: Sequence[Grid], closing: Sequence[str], width: int | None) -> str:
    width = width or shutil.get_terminal_size((120, 24)).columns
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, emoji=False)
    for grid in grids:
        console.print(_fitting(grid, width))
        _print_notes(console, grid.notes)
        console.print()
    _print_notes(console, closing)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip().splitlines())


def _print_notes(console: Console, notes: Sequence[str]) -> None:
    listing = Table.grid(padding=(0, 1))
    for note in notes:
        listing.add_row("", Text(note))
    if notes:
        console.print(listing)


def _fitting(grid: Grid, width: int) -> Table:
    """The grid as a table, without the columns that a narrow console can best do without."""
    kept = list(range(len(grid.columns)))
    spare = sorted((i for i in kept if grid.columns[i].spare), key=lambda i: grid.columns[i].spare)
    while spare and sum(_width(grid, i) + 2 for i in kept) + 1 > width:
        kept.remove(spare.pop())
    table = _table(grid, kept)
    hidden = [c.header.replace("/ ", "/") for i, c in enumerate(grid.columns) if i not in kept]
    table.caption = f" not shown at this width: {', '.join(hidden)}" if hidden else None
    return table


def _table(grid: Grid, kept: Sequence[int]) -> Table:
    table = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left")
    table.title = Text(grid.title)
    for i in kept:
        column = grid.columns[i]
        justify: Literal["left", "right"] = "left" if column.left else "right"
        table.add_column(Text(column.header), justify=justify, width=_width(grid, i), vertical="top")
    for block in grid.blocks:
        for line in block:
            table.add_row(*(Text(line[i]) for i in kept))
        table.add_section()
    return table


def _width(grid: Grid, i: int) -> int:
    """The width of a column: headers break at spaces, cells stay whole up to 24 characters."""
    cells = max(cell_len(line[i]) for block in grid.blocks for line in block)
    return max(min(cells, 24), *map(cell_len, grid.columns[i].header.split()))


def _markdown(grid: Grid) -> str:
    lines = [f"**{_md(grid.title)}**", ""] if grid.title else []
    if grid.columns:
        lines += [_md_line(c.header.replace("/ ", "/") for c in grid.columns)]
        lines += ["|" + "|".join(":---" if c.left else "---:" for c in grid.columns) + "|"]
        lines += [_md_line(line) for block in grid.blocks for line in block]
        lines += [""] if grid.notes else []
    return "\n".join([*lines, *(f"- {_md(note)}" for note in grid.notes)])


def _md_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(_md, cells)) + " |"


def _md(text: str) -> str:
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_|[]~$" else c for c in text)


def _html(grid: Grid) -> str:
    lines = []
    if grid.columns:
        heads = "".join(_html_cell("th", c.header.replace("/ ", "/"), c) for c in grid.columns)
        lines += [f"<table>\n<caption>{html.escape(grid.title)}</caption>", f"<thead><tr>{heads}</tr></thead>"]
        lines += [_html_block(block, grid.columns) for block in grid.blocks] + ["</table>"]
    if grid.notes:
        lines += ["<ul>", *(f"<li>{html.escape(note)}</li>" for note in grid.notes), "</ul>"]
    return "\n".join(lines)


def _html_block(block: Sequence[Sequence[str]], columns: Sequence[Column]) -> str:
    lines = ["".join(_html_cell("td", cell, c) for cell, c in zip(line, columns, strict=True)) for line in block]
    return "<tbody>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</tbody>"


def _html_cell(tag: str, text: str, column: Column) -> str:
    return f'<{tag} style="text-align: {"left" if column.left else "right"}">{html.escape(text)}</{tag}>'


def _latex(grid: Grid) -> str:
    notes = [rf"\par\noindent {_tex(note)}" for note in grid.notes]
    if notes:
        notes = [r"{\footnotesize\raggedright", *notes, r"\par}"]
    if not grid.columns:
        return "\n".join(notes)
    return "\n".join([
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(grid.title)}}}",
        rf"\begin{{tabular}}{{{''.join('l' if c.left else 'r' for c in grid.columns)}}}",
        r"\toprule",
        _tex_line(c.header.replace("/ ", "/") for c in grid.columns),
        *(line for block in grid.blocks for line in [r"\midrule", *map(_tex_line, block)]),
        r"\bottomrule",
        r"\end{tabular}",
        *notes,
        r"\end{table}",
    ])  # fmt: skip


def _tex_line(cells: Iterable[str]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}", "±": r"$\pm$", "×": r"$\times$",
    "≤": r"$\leq$", "≈": r"$\approx$", "†": r"$\dagger$", "…": r"\ldots{}", "ø": r"{\o}", "æ": r"{\ae}",
    "–": "--", "—": "---",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(map(_tex_character, " ".join(text.split())))


def _tex_character(c: str) -> str:
    """What every LaTeX engine can set: accents fall off letters that cannot be written, the rest is a ``?``."""
    plain = unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()
    return TEX.get(c) or (c if c.isascii() else plain or "?")


_Cells = dict[str, object]


def _csv(found: Sequence[Section], unfinished: Sequence[Path]) -> str:
    """One flat table, full precision: ``row`` tells our rows, published ones and unfinished runs apart."""
    rows: list[_Cells] = [row for section in found for row in _csv_rows(section)]
    rows += [{"row": "unfinished", "run": _path(path)} for path in unfinished]
    differ = sorted({key for row in rows for key in row} - set(CSV))
    file = io.StringIO()
    writer = csv.DictWriter(file, [*CSV, *differ], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().rstrip("\n")


CSV = (
    "row", "data", "side", "test_sha256", "model", "variant", "kind", "test_nll", "stderr", "stderr_over", "seeds",
    "best_seed", "best_seed_test_nll", "bits_per_pixel", "parameters", "effective_parameters", "seconds",
    "images_per_second", "seconds_per_sample", "kernel", "verified", "valid_likelihood", "source", "notes", "run",
)  # fmt: skip


def _csv_rows(section: Section) -> Iterator[_Cells]:
    place: _Cells = {"data": section.data, "side": section.side}
    for row in section.rows:
        yield {**place, "test_sha256": section.sha256, **_csv_ours(row, list(differing(section.rows)))}
    for p in section.published:
        yield {**place, **_csv_theirs(p)}


def _csv_ours(row: Row, keys: Sequence[str]) -> _Cells:
    shown = {key: _value(row.first.settings[key]) for key in keys if key in row.first.settings}
    return {
        **{f"config.{key}": value for key, value in shown.items()},
        "row": "run",
        "model": row.first.model,
        "kind": "exact",
        "test_nll": row.nll,
        "stderr": row.stderr,
        "stderr_over": row.over,
        "seeds": " ".join(str(r.seed) for r in row.records),
        "best_seed": row.best.seed,
        "best_seed_test_nll": row.best.nll["test"].mean,
        "bits_per_pixel": row.mean("bits_per_pixel"),
        "parameters": row.first.parameters,
        "effective_parameters": row.first.effective,
        "seconds": row.mean("seconds"),
        "images_per_second": row.mean("images_per_second"),
        "seconds_per_sample": row.latency,
        "kernel": row.first.kernel,
        "verified": "true",
        "valid_likelihood": "true",
        "run": _path(row.best.path),
    }


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
        "notes": "; ".join(filter(None, [p.notes, p.protocol])),
    }


# ---- the table that ends a run ----------------------------------------------------------------------


def summary(record: Record) -> Table:
    """The short table that ends ``chainrule train``: the number, what it cost, and the published one."""
    test, splits = record.nll["test"], record.nll
    lines = {
        "test NLL": f"{_nats(test.mean)} ± {_nats(test.stderr, test.mean)} nats "
        f"(standard error over {test.count:,} images)",
        "published": _reference(record),
        "bits per pixel": f"{record.bits_per_pixel:.4f}",
        "train, valid NLL": f"{_nats(splits['train'].mean)}, {_nats(splits['valid'].mean)} nats",
        "parameters": _parameters(record),
        "seconds": f"{_three(record.seconds)} for {record.epochs} epochs, {_three(record.images_per_second)} images/s",
        "kernel": record.kernel or "",
        "test set": f"{record.data} {record.side}×{record.side}, SHA-256 {record.sha256[:12]}…",
    }
    table = Table(title=Text(record.model), title_justify="left", box=box.HORIZONTALS, show_header=False)
    for name, text in lines.items():
        if text:
            table.add_row(name, Text(text))
    return table


def _reference(record: Record) -> str:
    """The published number in words; none for images of another size, which nobody published."""
    p = published_for(record.model, record.data) if record.n == 784 else None
    return f"{_nats(p.nll)} nats ({p.name}, {p.cite}): {p.protocol}" if p else ""


def _parameters(record: Record) -> str:
    effective = f" ({record.effective:,} effective)" if record.effective != record.parameters else ""
    return f"{record.parameters:,}{effective}"
