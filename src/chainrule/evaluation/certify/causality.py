"""No logit sees a pixel that it may not see."""

from __future__ import annotations

import torch
from torch import Tensor

from chainrule.density import AutoregressiveDensity
from chainrule.evaluation.certify.subject import Figures, Refuted, Subject, autoregressive, first

IMAGES = 3  # test images of which every pixel is flipped


def causality(subject: Subject) -> Figures:
    """Flipping the pixel of step t leaves the logits of all steps up to t bit-identical, for every t.

    Both batches have the same layout, so that the same sums are taken in the same order: then whatever differs was
    seen by the model.
    """
    density = autoregressive(subject.density, "whose inputs could be flipped")
    images = subject.chosen(IMAGES)
    reacting = 0
    for number in images:
        before, after = flipped(density, subject.test[number])
        changed = before != after  # [t, s]: flipping step t changes the logit of step s
        if bool((seen := changed.tril()).any()):
            raise _reaction(density, number, seen, before, after)
        reacting += int(changed.sum())
    n = density.dim
    pairs = len(images) * n * (n - 1) // 2
    return {"images": len(images), "flips": len(images) * n, "reacting": reacting / max(pairs, 1)}


@torch.no_grad()
def flipped(density: AutoregressiveDensity, image: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of an image's n steps, n times: as it is, and in row t with the pixel of step t flipped."""
    order = density.order
    x = image.to(density.device).repeat(density.dim, 1)
    y = x.clone()
    y[torch.arange(density.dim, device=order.device), order] ^= 1
    return density(x)[:, order].cpu(), density(y)[:, order].cpu()


def _reaction(density: AutoregressiveDensity, number: int, seen: Tensor, before: Tensor, after: Tensor) -> Refuted:
    t, s = first(seen)
    a, b = float(before[t, s]), float(after[t, s])
    return Refuted(
        f"test image {number}: flipping the pixel of step {t} changes the logit of step {s} from {a:.9g} to {b:.9g}",
        image=number, flipped=t, step=s, pixel=int(density.order[s]), expected=a, found=b,
    )  # fmt: skip
