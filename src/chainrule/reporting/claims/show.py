"""Figures and judgements as tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from chainrule.models.tabular import LIMIT
from chainrule.reporting import tables
from chainrule.reporting.claims.figures import MANY, Figures, Place, Support
from chainrule.reporting.claims.formulas import FORMULAS
from chainrule.reporting.claims.verdicts import Judgement
from chainrule.reporting.tables import Block, Column, Grid
from chainrule.reporting.tables.words import nats, three_digits, with_error

FORMATS = ("rich", "markdown", "latex", "html")

Cell = Callable[[Figures, Place], str]
CELLS: tuple[tuple[Column, Cell], ...] = (
    (Column("model", True), lambda f, p: f.model),
    (Column("d"), lambda f, p: "" if f.d is None else str(f.d)),
    (Column("parameters"), lambda f, p: f"{f.parameters:,}"),
    (Column("formula", True, 3), lambda f, p: _formula(f)),
    (Column("train NLL"), lambda f, p: nats(f.train)),
    (Column("train KL", spare=1), lambda f, p: f"{f.kl_train:.4f}" if p.train.telling else ""),
    (Column("test NLL"), lambda f, p: with_error(f.test, f.test_stderr)),
    (Column("test KL", spare=1), lambda f, p: f"{f.kl_test:.4f}" if p.test.telling else ""),
    (Column("training images/s", spare=4), lambda f, p: three_digits(f.images_per_second)),
    (Column("ms/ sample", spare=2), lambda f, p: three_digits(1000 * f.seconds.draw_one)),
    (Column("by n passes", spare=2), lambda f, p: three_digits(1000 * f.seconds.passes_one)),
    (Column(f"each of {MANY:,}", spare=2), lambda f, p: three_digits(1000 * f.seconds.draw_many)),
)


def render(places: Sequence[Place], judgements: Sequence[Judgement], form: str = "rich", disturbed: float = 0) -> str:
    """All tables, and below them a line for each claim.

    Args:
        places: what was measured.
        judgements: of the claims.
        form: one of :data:`FORMATS`.
        disturbed: the share of the processor that others took meanwhile; 0 for none worth a word.
    """
    grids = [_grid(place) for place in places]
    return tables.render(grids, [*_remarks(disturbed), *map(sentence, judgements)], form)


def sentence(judgement: Judgement) -> str:
    figures = "; ".join(judgement.figures)
    return f"{judgement.verdict.upper()}: {judgement.claim}. {figures or 'No runs for it'}. Rule: {judgement.rule}."


def _remarks(disturbed: float) -> Iterator[str]:
    yield (
        "ms per sample: one image alone by the model's own walk, by n full passes, and each of "
        f"{MANY:,} drawn at once by the walk"
    )
    if disturbed:
        yield f"other processes took {disturbed:.0%} of the processor: the times are not to be trusted"


def _grid(place: Place) -> Grid:
    lines = [[cell(f, place) for _, cell in CELLS] for f in sorted(place.figures, key=_as_in_the_text)]
    if place.n > LIMIT:
        lines.insert(0, _impossible(place.n))
    kept = [i for i in range(len(CELLS)) if any(line[i] for line in lines)]
    return Grid(
        title=f"{place.data} {place.side}×{place.side}, n = {place.n}, test set {place.sha256[:8]}: NLL and KL in nats",
        columns=[CELLS[i][0] for i in kept],
        blocks=[Block([[line[i] for i in kept] for line in lines])],
        notes=list(_notes(place)),
    )


def _as_in_the_text(f: Figures) -> tuple[int, int]:
    return list(FORMULAS).index(f.model), f.d or 0


def _impossible(n: int) -> list[str]:
    return ["tabular", "", f"2^{n} − 1", FORMULAS["tabular"].text, *[""] * (len(CELLS) - 4)]


def _formula(f: Figures) -> str:
    text = f.formula.text
    return text if f.claimed == f.parameters else f"not {text} = {f.claimed:,}"


def _notes(place: Place) -> Iterable[str]:
    sets = {"training": place.train, "test": place.test}
    yield "entropy of the empirical distribution: " + "; ".join(_support(name, s) for name, s in sets.items())
    if not all(s.telling for s in sets.values()):
        yield "where hardly an image repeats, that is ln N, and the KL to it says no more than the NLL: left out"


def _support(name: str, s: Support) -> str:
    return f"{nats(s.entropy)} of the {name} images ({s.distinct:,} of {s.total:,} distinct)"
