"""Every way to compute the distribution gives the same one."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from chainrule.density import AutoregressiveDensity
from chainrule.evaluation.certify.subject import (
    Figures,
    Refuted,
    Subject,
    autoregressive,
    first,
    in_batches,
    log_conditionals,
    walked,
)

IMAGES = 100  # test images that two implementations score, and images drawn
ALONE = 5  # of these, scored without company
EXACT = 1e-9  # how far two float64 computations may differ, relative to 1 + |number|
SINGLE = 1e-4  # the same for float32 against float64: logits of hundreds of terms
TIE = 1e-5  # how far a uniform may be from the probability, and the bit be either


def implementations(subject: Subject) -> Figures:
    """Every way to compute the distribution gives the same one, on test images and on uniforms.

    In float64: one step at a time, all steps at once, and an image alone or in company. In the model's own precision,
    with its own kernels: logits, ``log_prob``, and that ``draw`` turns uniforms into the bits that the logits say.
    """
    density = autoregressive(subject.density, "to compare; its members' certificates speak for them")
    exact = autoregressive(subject.exact, "")
    images = subject.chosen(IMAGES)
    x = subject.test[images]
    expected = in_batches(exact, exact, x)[:, exact.order.cpu()]
    same = partial(_same, images, expected)
    nats = log_conditionals(exact, x, expected).sum(1, keepdim=True)
    return {
        "images": len(images),
        "walk": same(walked(exact, x), EXACT, "a logit, one step at a time"),
        "alone": same(_alone(exact, x[:ALONE]), EXACT, "a logit of an image alone"),
        "kernel": same(in_batches(density, density, x)[:, exact.order.cpu()], SINGLE, "a logit of the model's kernel"),
        "log_prob": _same(images, nats, in_batches(density.log_prob, density, x)[:, None], SINGLE, "log_prob"),
        **_drawn(subject, density, exact),
    }


def _same(images: list[int], expected: Tensor, found: Tensor, tolerance: float, what: str) -> float:
    """The largest deviation of (B, steps) numbers, which may be of the first images only.

    Raises:
        Refuted: it is above the tolerance.
    """
    expected = expected[: len(found)]
    off = (found - expected).abs() / (1 + expected.abs())
    wrong = ~(off <= tolerance)  # a nan agrees with nothing
    if not bool(wrong.any()):
        return float(off.max())
    i, t = first(wrong)
    a, b = float(expected[i, t]), float(found[i, t])
    step = {"step": t} if found.shape[1] > 1 else {}
    where = f"test image {images[i]}" + (f", step {t}" if step else "")
    raise Refuted(
        f"{where}: {what} is {b:.9g}, but {a:.9g} by all conditionals at once in float64",
        image=images[i], **step, expected=a, found=b,
    )  # fmt: skip


def _alone(density: AutoregressiveDensity, x: Tensor) -> Tensor:
    return torch.cat([in_batches(density, density, image[None]) for image in x])[:, density.order.cpu()]


def _drawn(subject: Subject, density: AutoregressiveDensity, exact: AutoregressiveDensity) -> Figures:
    """``draw`` gives the bits u < σ(logit), except where u and σ(logit) are equal within rounding."""
    u = torch.rand(IMAGES, density.dim, generator=subject.generator(), dtype=density.dtype)
    z = density.draw(u.to(density.device)).cpu()
    pixels = torch.empty_like(z).index_copy(1, density.order.cpu(), z).to(torch.uint8)
    p = in_batches(exact, exact, pixels)[:, exact.order.cpu()].sigmoid()
    other = (u < p) != z.bool()
    wrong = other & ~((u - p).abs() <= TIE)
    if bool(wrong.any()):
        i, t = first(wrong)
        raise Refuted(
            f"drawn image {i}, step {t}: draw gives {int(z[i, t])} for u = {float(u[i, t]):.9g}, but the probability "
            f"of a one is {float(p[i, t]):.9g}",
            image=i, step=t, expected=float(p[i, t]), found=float(u[i, t]),
        )  # fmt: skip
    return {"draws": IMAGES, "ties": int(other.sum())}
