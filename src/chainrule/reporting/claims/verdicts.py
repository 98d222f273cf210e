"""The text's claims, each with the rule by which the figures decide whether it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from chainrule.models.tabular import LIMIT
from chainrule.reporting.claims.figures import Figures, Place, difference, same_images
from chainrule.reporting.claims.formulas import FORMULAS, largest_nade
from chainrule.reporting.tables.words import nats, three_digits

Verdict = Literal["holds", "does not hold", "depends", "not measured"]

CLOSE = 0.01  # a KL below this share of the entropy is as good as 0
BOUNDED = 1.1  # a quotient that grows by no more is bounded
CLEAR = 2  # standard errors of a difference that is no chance
SLOW = 10  # times the cost of scoring an image that make drawing one slow


@dataclass(frozen=True)
class Finding:
    """One comparison that a rule asks for: its outcome, and the figures in words."""

    bears_out: bool
    figures: str


@dataclass(frozen=True)
class Claim:
    """A sentence of the text, the rule in words, and the same in code: all findings that the figures allow."""

    text: str
    rule: str
    find: Callable[[Sequence[Place]], Iterable[Finding]]


@dataclass(frozen=True)
class Judgement:
    """What became of a claim."""

    claim: str
    rule: str
    verdict: Verdict
    figures: tuple[str, ...]


def judge(places: Sequence[Place]) -> list[Judgement]:
    """A judgement of every claim; ``places`` by growing n."""
    return [_judgement(claim, list(claim.find(places))) for claim in CLAIMS]


def _judgement(claim: Claim, findings: Sequence[Finding]) -> Judgement:
    return Judgement(claim.text, claim.rule, _verdict(findings), tuple(finding.figures for finding in findings))


def _verdict(findings: Sequence[Finding]) -> Verdict:
    if not findings:
        return "not measured"
    if all(finding.bears_out for finding in findings):
        return "holds"
    return "depends" if any(finding.bears_out for finding in findings) else "does not hold"


# ---- parameters -------------------------------------------------------------------------------------


def _exponential(places: Sequence[Place]) -> Iterable[Finding]:
    largest = max((place.n for place in places), default=0)
    beyond = f"; for n = {largest}: {_astronomical(largest)}" if largest > LIMIT else ""
    for _, (table,) in same_images(places, "tabular"):
        yield Finding(table.parameters == 2**table.n - 1, f"{table.parameters:,} for n = {table.n}{beyond}")


def _astronomical(n: int) -> str:
    return f"2^{n} − 1 ≈ 10^{round(n * math.log10(2))}"


def _grows(model: str, places: Sequence[Place]) -> Iterable[Finding]:
    figures = sorted((f for place in places for f in place.of(model)), key=lambda f: f.leading)
    if len({f.n for f in figures}) < 2:
        return
    smallest, largest = (f.parameters / f.leading for f in (figures[0], figures[-1]))
    exact = all(f.parameters == f.claimed for f in figures)
    yield Finding(exact and largest <= BOUNDED * smallest, ", ".join(dict.fromkeys(map(_count, figures))))


def _count(f: Figures) -> str:
    hidden = "" if f.d is None else f", d = {f.d}"
    return f"{f.parameters:,} = {f.parameters / f.leading:.3f} {f.formula.order} (n = {f.n}{hidden})"


def _fewer(than: str, places: Sequence[Place]) -> Iterable[Finding]:
    for place, (nade, other) in same_images(places, "nade", than):
        words = f"{nade.name} {nade.parameters:,}, {other.name} {other.parameters:,}"
        yield Finding(nade.parameters < other.parameters, f"n = {place.n}: {words}{_crossing(than, place.n)}")


def _crossing(than: str, n: int) -> str:
    return f" (NADE has fewer up to d = {largest_nade(n)})" if than == "fvsbn" else ""


# ---- likelihood -------------------------------------------------------------------------------------


def _represents(places: Sequence[Place]) -> Iterable[Finding]:
    for place, (table,) in same_images(places, "tabular"):
        yield Finding(
            table.kl_train < CLOSE * place.train.entropy,
            f"n = {place.n}: KL {table.kl_train:.4f} to the training images, of entropy {nats(place.train.entropy)}; "
            f"{table.kl_test:.4f} to the test images",
        )


def _expressive(places: Sequence[Place]) -> Iterable[Finding]:
    for place, (mlp, fvsbn) in same_images(places, "mlp", "fvsbn"):
        yield Finding(mlp.train < fvsbn.train, f"n = {place.n}, training images: {_two(mlp, fvsbn, 'train')}")
        yield _better(place, mlp, fvsbn)


def _better_nade(places: Sequence[Place]) -> Iterable[Finding]:
    return (_better(place, nade, fvsbn) for place, (nade, fvsbn) in same_images(places, "nade", "fvsbn"))


def _better_though_smaller(places: Sequence[Place]) -> Iterable[Finding]:
    for place, (fvsbn,) in same_images(places, "fvsbn"):
        nade = place.selected("nade", below=fvsbn.parameters)
        if nade:
            yield _better(place, nade, fvsbn)


def _better(place: Place, one: Figures, other: Figures) -> Finding:
    mean, stderr = difference(one, other)
    sizes = f"{one.parameters:,} and {other.parameters:,} parameters"
    words = f"n = {place.n}, test images: {_two(one, other, 'test')}, difference {mean:+.4f} ± {stderr:.4f} ({sizes})"
    return Finding(mean < -CLEAR * stderr, words)


def _two(one: Figures, other: Figures, split: str) -> str:
    return ", ".join(f"{f.name} {nats(getattr(f, split))}" for f in (one, other))


# ---- sampling ---------------------------------------------------------------------------------------


def _slow(places: Sequence[Place]) -> Iterable[Finding]:
    for model in FORMULAS:
        for place, (f,) in same_images(places, model)[-1:]:
            passes, walk = (drawn / f.seconds.score_one for drawn in (f.seconds.passes_one, f.seconds.draw_one))
            words = f"{f.name}, n = {place.n}: {three_digits(passes)} times as long by n full passes"
            yield Finding(passes > SLOW, words)
            yield Finding(walk > SLOW, f"{three_digits(walk)} times by its own walk")


# ---- all of them ------------------------------------------------------------------------------------

GROWTH = (
    "every count is the formula's, and divided by the order it grows by a factor of at most "
    f"{BOUNDED:g} from the smallest model to the largest; two n at least"
)
FIT = f"its KL to the training images is below {CLOSE:.0%} of their entropy"
BETTER = f"a test NLL lower by more than {CLEAR} standard errors of the paired difference, at every n"
FEWER = "of the models with the lowest validation NLL, at every n"
LONG = f"drawing an image takes more than {SLOW} times as long as scoring one, in either way, at each model's largest n"

CLAIMS = (
    Claim("a truth table can represent any distribution", FIT, _represents),
    Claim("a truth table needs exponentially many parameters", "its count is 2ⁿ − 1", _exponential),
    Claim("FVSBN has O(n²) parameters", GROWTH, partial(_grows, "fvsbn")),
    Claim("MLP, a network per pixel, has O(n²d) parameters", GROWTH, partial(_grows, "mlp")),
    Claim("MLP is more expressive than FVSBN", f"a lower NLL on the training images, and {BETTER}", _expressive),
    Claim("NADE has O(nd) parameters", GROWTH, partial(_grows, "nade")),
    Claim("NADE has fewer parameters than MLP", FEWER, partial(_fewer, "mlp")),
    Claim("NADE has fewer parameters than FVSBN", FEWER, partial(_fewer, "fvsbn")),
    Claim("NADE is still better than FVSBN", BETTER, _better_nade),
    Claim("NADE is better than FVSBN even with fewer parameters", BETTER, _better_though_smaller),
    Claim("sampling is sequential, and so slow", LONG, _slow),
)
