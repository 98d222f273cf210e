"""Every way to compute the distribution gives the same one."""

from __future__ import annotations

import torch
from torch import Tensor

from chainrule.density import AutoregressiveDensity
from chainrule.evaluation.certify.context import (
    CheckFailed,
    Context,
    Figures,
    autoregressive,
    first,
    log_conditionals,
    logits,
    walked,
)
from chainrule.evaluation.scoring import in_batches

IMAGES = 100  # test images that two implementations score, and images drawn, in all orders together
FEWEST = 16  # of these in each
ALONE = 5  # of these, scored without company
EXACT = 1e-9  # how far two float64 computations may differ, relative to 1 + |number|
SINGLE = 1e-4  # the same for float32 against float64: logits of hundreds of terms
TIE = 1e-5  # how far a uniform may be from the probability, and the bit be either


def implementations(context: Context) -> Figures:
    """Every way to compute the distribution gives the same one, on test images and on uniforms.

    In float64: one step at a time, all steps at once, and an image alone or in company. In the model's own precision,
    with its own kernels: logits, ``log_prob``, and that ``draw`` turns uniforms into the bits that the logits say.
    """
    densities = autoregressive(context.density, "to compare; its members' certificates speak for them")
    exacts = autoregressive(context.exact, "")
    count = max(FEWEST, IMAGES // len(densities))
    images = context.chosen(count)
    figures: dict[str, float] = {}
    for density, exact in zip(densities, exacts, strict=True):
        found = _compared(context, density, exact, images, share=0.1 / len(densities))
        figures = found if not figures else {key: max(figures[key], value) for key, value in found.items()}
    by = {"by": "cache" if exacts[0].has_cache else "walk", "draws": count, "images": len(images)}
    return {**figures, **by, "orders": len(densities)} if len(densities) > 1 else {**figures, **by}


def _compared(
    context: Context, density: AutoregressiveDensity, exact: AutoregressiveDensity, images: list[int], share: float
) -> dict[str, float]:
    x = context.test[images]
    expected = logits(exact, x)
    nats = log_conditionals(exact, x, expected).sum(1, keepdim=True)

    def same(found: Tensor, tolerance: float, what: str, start: int = 0, truth: Tensor = expected) -> float:
        return _same(images[start:], truth[start : start + len(found)], found, tolerance, what)

    steps, on_walk = 0.0, 0
    for part in context.within(share, len(images), start=8 if exact.has_cache else 1):
        walk = walked(exact, x[part.start : part.stop])
        steps, on_walk = max(steps, same(walk, EXACT, "a logit, one step at a time", part.start)), part.stop
    alone = torch.cat([logits(exact, image[None]) for image in x[:ALONE]])
    return {
        "walk": steps,
        "walked": on_walk,
        "alone": same(alone, EXACT, "a logit of an image alone"),
        "kernel": same(logits(density, x), SINGLE, "a logit of the model's kernel"),
        "log_prob": same(in_batches(density.log_prob, x, density.device)[:, None], SINGLE, "log_prob", truth=nats),
        "ties": _ties(context, density, exact, len(images)),
    }


def _same(images: list[int], expected: Tensor, found: Tensor, tolerance: float, what: str) -> float:
    """The largest deviation of (B, steps) numbers.

    Raises:
        CheckFailed: it is above the tolerance.
    """
    off = (found - expected).abs() / (1 + expected.abs())
    wrong = ~(off <= tolerance)  # a nan agrees with nothing
    if not bool(wrong.any()):
        return float(off.max())
    i, t = first(wrong)
    a, b = float(expected[i, t]), float(found[i, t])
    step = {"step": t} if found.shape[1] > 1 else {}
    where = f"test image {images[i]}" + (f", step {t}" if step else "")
    raise CheckFailed(
        f"{where}: {what} is {b:.9g}, but {a:.9g} by all conditionals at once in float64",
        image=images[i], **step, expected=a, found=b,
    )  # fmt: skip


def _ties(context: Context, density: AutoregressiveDensity, exact: AutoregressiveDensity, count: int) -> int:
    """``draw`` gives the bits u < σ(logit), except where u and σ(logit) are equal within rounding: how often?"""
    u = torch.rand(count, density.dim, generator=context.generator(), dtype=density.dtype)
    z = density.draw(u.to(density.device)).cpu()
    pixels = torch.empty_like(z).index_copy(1, density.order.cpu(), z).to(torch.uint8)
    p = logits(exact, pixels).sigmoid()
    other = (u < p) != z.bool()
    wrong = other & ~((u - p).abs() <= TIE)
    if bool(wrong.any()):
        i, t = first(wrong)
        raise CheckFailed(
            f"drawn image {i}, step {t}: draw gives {int(z[i, t])} for u = {float(u[i, t]):.9g}, but the probability "
            f"of a one is {float(p[i, t]):.9g}",
            image=i, step=t, expected=float(p[i, t]), found=float(u[i, t]),
        )  # fmt: skip
    return int(other.sum())
