"""``chainrule claims``: what a text says of its models, measured on finished runs and judged by written rules.

The claims are those of ``conf/claims.yaml``; a rule is a function of this module.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from chainrule.bench.cases import inference
from chainrule.bench.timing import Timer, quartiles
from chainrule.density import AutoregressiveDensity
from chainrule.evaluation import scoring
from chainrule.evaluation.empirical import Empirical
from chainrule.files import write_whole
from chainrule.reporting import render as rendering
from chainrule.reporting.format import nats, three_digits, with_error
from chainrule.reporting.growth import claimed
from chainrule.reporting.render import Block, Column, Grid
from chainrule.reporting.tables import Row, Section, sections
from chainrule.runs.directory import discover, load_config, open_run
from chainrule.runs.load import load_autoregressive
from chainrule.runs.provenance import provenance
from chainrule.runs.record import Record, write_json

log = logging.getLogger(__name__)

SCHEMA = 2  # of claims.json
FORMATS = ("console", "markdown", "latex")
MANY = 1000  # images drawn at once


# ---- what is measured -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A model on one test set; NLL and KL in nats, means over its seeds. ``train`` is of all training images."""

    model: str
    n: int
    d: int | None
    parameters: int
    growth: str  # of the parameters, as the class says
    valid: float
    train: float
    test: float
    test_stderr: float
    kl_train: float
    kl_test: float
    images_per_second: float | None  # of training; None for what was not trained
    seconds: dict[str, float]  # score, sample, pass (n of them): an image alone; many: each of MANY drawn at once
    nll: NDArray[np.float64] = field(repr=False)  # (N,) of each test image

    @property
    def name(self) -> str:
        return self.model if self.d is None else f"{self.model}-{self.d}"

    @property
    def leading(self) -> float:
        """The formula of the growth at this n and d."""
        n, d = (claimed(self.growth, v, np.array([float(x)])).item() for v, x in (("n", self.n), ("d", self.d or 1)))
        return float(n * d)

    @property
    def factor(self) -> str:
        """The parameters as a multiple of the formula."""
        return f"{self.parameters / self.leading:.3f} {self.growth}" if self.growth else ""


@dataclass(frozen=True)
class TestSet:
    """All that was scored on one test set; of its training and test images the entropy."""

    data: str
    n: int
    sha256: str
    train: Empirical
    test: Empirical
    models: tuple[Measured, ...]

    def best(self, model: str, below: float = math.inf) -> Measured | None:
        """The size with the lowest validation NLL, of those with fewer than ``below`` parameters."""
        sizes = (m for m in self.models if m.model == model and m.parameters < below)
        return min(sizes, key=lambda m: m.valid, default=None)


def measure(section: Section, cfg: DictConfig, timer: Timer) -> TestSet:
    """Everything about the runs on one test set.

    Raises:
        ValueError: the images are not those of the runs, or a checkpoint is damaged.
        OSError: images or checkpoints cannot be found.
    """
    path = section.rows[0].first.path
    data, recorded = scoring.load_data(cfg, load_config(open_run(path)).data), Record.read(path).data
    if data.sha256 != recorded.sha256:
        raise ValueError(
            f"{path} is of other {data.name} images (test set SHA-256 {recorded.sha256['test'][:12]}…) than are in "
            f"{cfg.paths.data_dir} ({data.sha256['test'][:12]}…): give their paths.data_dir"
        )
    train, test = Empirical.of(data.train), Empirical.of(data.test)
    best: dict[tuple[str, object], Row] = {}  # of several settings of a model and size, the best on validation
    for row in sorted(section.rows, key=_valid):
        best.setdefault((row.first.model, row.first.settings.get("model.hidden")), row)
    models = tuple(_measure(row, train, test, data.test, timer) for row in best.values())
    return TestSet(section.data, recorded.n, section.sha256, train, test, models)


def _valid(row: Row) -> float:
    return fmean(r.nll["valid"].mean for r in row.records)


def _measure(row: Row, train: Empirical, test: Empirical, images: torch.Tensor, timer: Timer) -> Measured:
    densities = [load_autoregressive(r.path) for r in row.records]
    # In float64 where images repeat, so that a KL near 0 is exact.
    exact = [p.reference() if train.repeats and test.repeats else p for p in densities]
    on_train, on_test = (fmean(split.cross_entropy(p) for p in exact) for split in (train, test))
    hidden = row.first.settings.get("model.hidden")
    trained = [r.images_per_second for r in row.records if r.images_per_second]
    log.info("%s, n = %d, d = %s", row.first.model, densities[0].dim, hidden)
    return Measured(
        model=row.first.model,
        n=densities[0].dim,
        d=hidden if isinstance(hidden, int) else None,
        parameters=densities[0].parameter_count,
        growth=densities[0].growth or "",
        valid=_valid(row),
        train=on_train,
        test=row.nll,
        test_stderr=row.stderr,
        kl_train=on_train - train.entropy,
        kl_test=on_test - test.entropy,
        images_per_second=fmean(trained) if trained else None,
        seconds=_seconds(densities[0], images[:1], timer),
        nll=np.mean([scoring.nll_per_image(p, images) for p in densities], axis=0),
    )


@torch.no_grad()
def _seconds(density: AutoregressiveDensity, x: torch.Tensor, timer: Timer) -> dict[str, float]:
    times = timer.alternate(inference(density, x) | {"many": lambda: density.sample(MANY)})
    scale = {"pass": density.dim, "many": 1 / MANY}
    return {way: quartiles(values)["median"] * scale.get(way, 1) for way, values in times.items()}


# ---- rules: each finding is whether it bears the claim out, and the figures --------------------------------

Finding = tuple[bool, str]
Sets = Sequence[TestSet]


def represents(sets: Sets, model: str) -> Iterator[Finding]:
    """its KL to the training images is below 1% of their entropy"""
    for s, (m,) in _together(sets, model):
        figures = f"KL {m.kl_train:.4f} to the training images, of entropy {nats(s.train.entropy)}"
        yield m.kl_train < 0.01 * s.train.entropy, f"n = {s.n}: {figures}; {m.kl_test:.4f} to the test images"


def exponential(sets: Sets, model: str) -> Iterator[Finding]:
    """its count is 2ⁿ − 1"""
    largest = max((s.n for s in sets), default=0)
    beyond = f"; n = {largest} takes 2^{largest} − 1 ≈ 10^{round(largest * math.log10(2))}"
    for s, (m,) in _together(sets, model):
        yield m.parameters == 2**s.n - 1, f"{m.parameters:,} for n = {s.n}{beyond if largest > s.n else ''}"


def grows(sets: Sets, model: str) -> Iterator[Finding]:
    """its count over the formula grows by a factor of at most 1.1 from the smallest to the largest; two n at least"""
    found = sorted((m for s in sets for m in s.models if m.model == model), key=lambda m: m.leading)
    if len({m.n for m in found}) > 1:
        smallest, largest = (m.parameters / m.leading for m in (found[0], found[-1]))
        counts = ", ".join(f"{m.parameters:,} = {m.factor} ({m.name}, n = {m.n})" for m in found)
        yield largest <= 1.1 * smallest, counts


def fewer(sets: Sets, model: str, than: str) -> Iterator[Finding]:
    """of the models with the lowest validation NLL, at every n"""
    for s, (m, other) in _together(sets, model, than):
        figures = f"{m.name} {m.parameters:,}, {other.name} {other.parameters:,}"
        yield m.parameters < other.parameters, f"n = {s.n}: {figures}"


def better(sets: Sets, model: str, than: str, smaller: bool = False) -> Iterator[Finding]:
    """a test NLL lower by more than 2 standard errors of the paired difference, at every n"""
    for s, (other,) in _together(sets, than):
        if m := s.best(model, below=other.parameters if smaller else math.inf):
            yield _compare(s, m, other)


def more_expressive(sets: Sets, model: str, than: str) -> Iterator[Finding]:
    """a lower NLL on the training images, and one lower by more than 2 standard errors on test images, at every n"""
    for s, (m, other) in _together(sets, model, than):
        figures = f"{m.name} {nats(m.train)}, {other.name} {nats(other.train)}"
        yield m.train < other.train, f"n = {s.n}, training images: {figures}"
        yield _compare(s, m, other)


def samples_slowly(sets: Sets) -> Iterator[Finding]:
    """drawing an image takes more than 10 times as long as scoring one, either way, at each model's largest n"""
    for model in dict.fromkeys(m.model for s in sets for m in s.models):
        for s, (m,) in _together(sets, model)[-1:]:
            passes, own = (m.seconds[way] / m.seconds["score"] for way in ("pass", "sample"))
            yield passes > 10, f"{m.name}, n = {s.n}: {three_digits(passes)} times as long by n full passes"
            yield own > 10, f"{three_digits(own)} times by its own sampler"


RULES: dict[str, Callable[..., Iterable[Finding]]] = {
    rule.__name__: rule for rule in (represents, exponential, grows, fewer, better, more_expressive, samples_slowly)
}


def judge(sets: Sets, claim: str, rule: str, **arguments: object) -> dict[str, Any]:
    """The verdict on a claim, ``sets`` by growing n.

    Raises:
        ValueError: there is no such rule, or it takes other arguments.
    """
    try:
        findings = list(RULES[rule](sets, **arguments))
    except (KeyError, TypeError) as error:
        raise ValueError(f"claims: {claim!r}: rule must be one of {', '.join(RULES)}, with its models") from error
    outcomes = {holds for holds, _ in findings}
    verdict = "depends" if len(outcomes) == 2 else "holds" if True in outcomes else "does not hold"
    return {
        "claim": claim,
        "rule": RULES[rule].__doc__,
        "verdict": verdict if findings else "not measured",
        "figures": [figures for _, figures in findings],
    }


def _together(sets: Sets, *models: str) -> list[tuple[TestSet, list[Measured]]]:
    """The test sets that all these models were scored on, and the best size of each model."""
    found = [(s, [m for model in models if (m := s.best(model))]) for s in sets]
    return [(s, chosen) for s, chosen in found if len(chosen) == len(models)]


def _compare(s: TestSet, one: Measured, other: Measured) -> Finding:
    difference = one.nll - other.nll
    mean, stderr = float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return mean < -2 * stderr, (
        f"n = {s.n}, test images: {one.name} {nats(one.test)}, {other.name} {nats(other.test)}, difference "
        f"{mean:+.4f} ± {stderr:.4f} ({one.parameters:,} and {other.parameters:,} parameters)"
    )


# ---- the command ------------------------------------------------------------------------------------


def claims(cfg: DictConfig) -> str:
    """Measures, judges, writes ``claims.json`` and ``claims.md``, and returns the same as text.

    Args:
        cfg: the composed configuration of ``conf/claims.yaml``.

    Raises:
        ValueError: there is no run of these models, a path or an option cannot work, or the images have changed.
        OSError: images or checkpoints cannot be found, or files not be written.
    """
    if cfg.format not in FORMATS:
        raise ValueError(f"unknown format {cfg.format!r}: choose one of {', '.join(FORMATS)}")
    out = Path(str(cfg.out)).expanduser()
    if out.suffix != ".json":
        raise ValueError(f"out must end in .json, got {cfg.out}")
    for claim in cfg.claims or [None]:
        if not (isinstance(claim, DictConfig) and all(isinstance(text, str | bool) for text in claim.values())):
            raise ValueError(f"claims: each must be a claim, a rule and its models, got {claim!r}")
    models = list(dict.fromkeys(claim[key] for claim in cfg.claims for key in ("model", "than") if key in claim))
    found, _ = discover(cfg.runs if isinstance(cfg.runs, str) else list(cfg.runs))
    records = [record for record in found if record.model in models]
    if not records:
        raise ValueError(f"no finished run of {', '.join(models)} in {cfg.runs}: scripts/claims trains them")
    for claim in cfg.claims:
        judge([], **{"claim": "", "rule": "", **claim})  # a mistyped rule is found before anything costs time
    timer = Timer(rounds=3, seconds=0.5)
    sets = [measure(section, cfg, timer) for section in sections(records, published=False)]
    sets.sort(key=lambda s: (s.n, s.data))
    judgements = [judge(sets, **claim) for claim in cfg.claims]
    content = {"schema": SCHEMA, **provenance(), "sets": [_json(s) for s in sets], "claims": judgements}
    write_json(out, content)
    write_whole(out.with_suffix(".md"), f"{render(sets, judgements, models, 'markdown')}\n".encode())
    return render(sets, judgements, models, cfg.format)


def _json(s: TestSet) -> dict[str, Any]:
    splits = {
        split: {"total": images.total, "distinct": images.distinct, "entropy": images.entropy}
        for split, images in (("train", s.train), ("test", s.test))
    }
    models = [{key: value for key, value in vars(m).items() if key != "nll"} for m in s.models]
    return {"data": s.data, "n": s.n, "sha256": s.sha256, **splits, "models": models}


def render(sets: Sets, judgements: Sequence[dict[str, Any]], models: Sequence[str], form: str = "console") -> str:
    """A table for each test set, its rows in the order of ``models``, and a line for each claim."""
    lines = [f"ms: of an image alone, by the model's own sampler and by n full passes; each of {MANY:,} drawn at once"]
    for j in judgements:
        figures = "; ".join(j["figures"]) or "No runs for it"
        lines.append(f"{j['verdict'].upper()}: {j['claim']}. {figures}. Rule: {j['rule']}.")
    return rendering.render([_grid(s, models) for s in sets], lines, form)


def _grid(s: TestSet, models: Sequence[str]) -> Grid:
    rows = [_row(s, m) for m in sorted(s.models, key=lambda m: (models.index(m.model), m.d or 0))]
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    notes = [
        f"entropy of the {split} images: {nats(images.entropy)} ({images.distinct:,} of {images.total:,} distinct)"
        for split, images in (("training", s.train), ("test", s.test))
    ]
    if not (s.train.repeats and s.test.repeats):
        notes.append("hardly an image repeats, so the KL is the NLL less a constant, ln N: left out")
    return Grid(
        title=f"{s.data}, n = {s.n}, test set {s.sha256[:8]}: NLL and KL in nats",
        columns=[Column(column, left=column == "model") for column in columns],
        blocks=[Block([[row[column] for column in columns] for row in rows])],
        notes=notes,
    )


def _row(s: TestSet, m: Measured) -> dict[str, str]:
    ms = {way: three_digits(1000 * seconds) for way, seconds in m.seconds.items()}
    return {
        "model": m.model,
        "d": "" if m.d is None else str(m.d),
        "parameters": f"{m.parameters:,}",
        "by formula": m.factor,
        "train NLL": nats(m.train),
        "train KL": f"{m.kl_train:.4f}" if s.train.repeats else "",
        "test NLL": with_error(m.test, m.test_stderr),
        "test KL": f"{m.kl_test:.4f}" if s.test.repeats else "",
        "training images/s": three_digits(m.images_per_second),
        "ms/sample": ms["sample"],
        "by n passes": ms["pass"],
        f"each of {MANY:,}": ms["many"],
    }
