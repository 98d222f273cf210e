"""Numbers from the literature, and which of them may stand beside ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml  # type: ignore[import-untyped, unused-ignore]

AUTOREGRESSIVE = ("fvsbn", "nade", "deep_nade", "conv_nade", "made", "pixelcnn", "pixelrnn", "transformer")  # families

DATA = {
    "static": "static test set (Larochelle's files)",
    "threshold": "thresholded test set",
    "dynamic": "dynamic test set (re-drawn from the gray levels by each source)",
    "unknown": "test set not named by the source",
}
# The SHA-256 of the test images that published static figures are on, as records have it.
STATIC_TEST = "ca0294c3b8d984c7a1dc891015a8eea6f37bae59a34e35ea0fc8c47110a8dd86"
KINDS = {"exact": "exact", "upper_bound": "bound", "estimate": "estimate"}


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
    train_images: int = 50_000  # as far as the source says
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
        kind = f"{DATA[self.data]}, {KINDS[self.kind]}"
        return "; ".join(filter(None, [kind, split, self.training_set, caveat, self.remark]))

    @property
    def training_set(self) -> str:
        """Said where it is not the 50,000 images that leave 10,000 for validation."""
        return "" if self.train_images == 50_000 else f"trained on all {self.train_images:,} images"


@cache
def published_numbers() -> tuple[Published, ...]:
    """All rows of published.yaml."""
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    return tuple(Published(**row) for row in yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))  # noqa: S506


def published_for(model: str, data: str) -> Published | None:
    """The number to hold a model against: an exact and valid likelihood of test images.

    The same data set comes before the static one, a row of that very name before one of its family, then the lowest
    NLL. ``protocol`` says which test set it is on, and whether the figure was read in its source.
    """
    exact = [p for p in published_numbers() if p.exact]
    if here := nearest((p for p in exact if p.data == data), model):
        return here
    there = nearest((p for p in exact if p.data == "static"), model)
    return replace(there, remark=f"a different test set than {data}") if there else None


def nearest(rows: Iterable[Published], model: str) -> Published | None:
    """The lowest NLL of a model of that name, else of its family."""
    near = [p for p in rows if _akin(p, model)]
    return min(near, key=lambda p: (_slug(p.name) != _slug(model), p.nll), default=None)


def _akin(p: Published, model: str) -> bool:
    """A model is compared with its name, and with its family only where that is one architecture."""
    return _slug(model) == _slug(p.name) or (p.family in AUTOREGRESSIVE and _slug(model) == _slug(p.family))


def _slug(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def neighbours(data: str, n: int, sha256: str, which: bool | str, invalid: bool) -> list[Published]:
    """Published rows on the same test set: exact ones first, then bounds and estimates, then invalid ones.

    Args:
        data: name of the data set; only ``static`` and ``dynamic`` are published test sets.
        n: pixels; published numbers are for 784.
        sha256: of the test images; static figures stand beside those of Larochelle's files only.
        which: True for the best exact likelihood of each autoregressive model, ``"verified"`` for the same of
            the figures that were read in their source, ``"all"``, or False.
        invalid: also rows whose likelihood is none, or may be none.
    """
    if which is False or n != 784 or data not in ("static", "dynamic") or (data == "static" and sha256 != STATIC_TEST):
        return []
    same = [p for p in published_numbers() if p.data == data]
    same = [p for p in same if p.verified or which != "verified"]
    shown = [p for p in same if p.valid] if which == "all" else _leaders(same)
    shown += [p for p in same if invalid and not p.valid]
    return sorted(shown, key=lambda p: (block(p), p.nll))


def _leaders(rows: Iterable[Published]) -> list[Published]:
    leaders: dict[str, Published] = {}
    for p in sorted(rows, key=lambda p: p.nll):
        if p.exact and p.family in AUTOREGRESSIVE:
            leaders.setdefault(p.model, p)
    return list(leaders.values())


def block(p: Published) -> int:
    return 1 if p.exact else 2 if p.valid else 3
