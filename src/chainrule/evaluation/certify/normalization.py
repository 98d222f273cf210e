"""Probabilities sum to 1."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation.certify.context import (
    CheckFailed,
    Context,
    Figures,
    NotApplicable,
    autoregressive,
    log_conditionals,
    logits,
)
from chainrule.evaluation.scoring import in_batches

PREFIXES = 2  # test images whose prefix is completed in every way
ENUMERABLE = 20  # pixels of which all images are summed
TOLERANCE = 1e-5  # how far a sum of probabilities may be from 1


def normalization(context: Context) -> Figures:
    """Probabilities sum to 1: of all completions of a test image's first n − k pixels; of all images, if countable."""
    density, k = context.exact, context.k
    figures: Figures = {}
    if density.dim <= ENUMERABLE:
        figures["whole"] = _checked_sum(_sum(density, every(density.dim), 0.0), "all images")
    try:
        parts = autoregressive(density, "")
    except NotApplicable:
        parts = []
    if parts and k < density.dim:
        images = context.chosen(PREFIXES)
        terms = context.affordable(partial(_scored, context, parts[0]), 0.2 / len(images) / len(parts), 2**k, (8, 32))
        k = int(math.log2(terms))
        sums = [_completed(part, context.test[number], number, k) for part in parts for number in images]
        figures |= {"prefixes": len(sums), "completions": 2**k, "deviation": max(abs(s - 1) for s in sums)}
    if not figures:
        raise NotApplicable(f"a {type(density).__name__.lower()} has no prefixes, and 2^{density.dim} images are many")
    return figures


def _scored(context: Context, density: BinaryDensity, count: int) -> Tensor:
    return in_batches(density.log_prob, context.test[:count], density.device)


def _completed(density: AutoregressiveDensity, image: Tensor, number: int, k: int) -> float:
    """Σ p(completion | prefix) over the last k pixels, each term by ``log_prob`` of a whole image."""
    kept = density.dim - k
    x = image.repeat(2**k, 1)
    x[:, density.order.cpu()[kept:]] = every(k)
    prefix = float(log_conditionals(density, image[None], logits(density, image[None]))[0, :kept].sum())
    return _checked_sum(_sum(density, x, prefix), f"all completions of test image {number}", image=number, step=kept)


def _sum(density: BinaryDensity, x: Tensor, given: float) -> float:
    return float((in_batches(density.log_prob, x, density.device) - given).exp().sum())


def _checked_sum(total: float, what: str, **where: int) -> float:
    if not abs(total - 1) <= TOLERANCE:
        raise CheckFailed(
            f"the probabilities of {what} sum to {total:.9g}, not to 1", **where, expected=1.0, found=total
        )
    return total


def every(k: int) -> Tensor:
    """All values of k bits, (2ᵏ, k) uint8."""
    return (torch.arange(2**k)[:, None] >> torch.arange(k) & 1).to(torch.uint8)
