"""No logit sees a pixel that it may not see."""

from __future__ import annotations

import torch
from torch import Tensor

from chainrule.density import AutoregressiveDensity
from chainrule.evaluation.certify.context import CheckFailed, Context, Figures, autoregressive, first, logits

IMAGES = 3  # test images of which every pixel is flipped
FLIPS = 32  # pixels flipped to find a blind spot
SCALE = 0.1  # of the random parameters with which every logit must see every earlier pixel


def causality(context: Context) -> Figures:
    """Flipping the pixel of step t leaves the logits of all steps up to t bit-identical, for every t.

    Both batches have the same layout, so that the same sums are taken in the same order: then whatever differs was
    seen by the model. A class that claims to see all earlier pixels does so with random parameters: no blind spot.
    """
    densities = autoregressive(context.density, "whose inputs could be flipped")
    images, reacting, pairs, done = context.chosen(IMAGES), 0, 0, 0
    work = [(number, density) for number in images for density in densities]
    for part in context.within(0.1, len(work), start=len(densities)):
        for number, density in work[part.start : part.stop]:
            before, after = flipped(density, context.test[number], torch.arange(density.dim))
            changed = before != after  # [t, s]: flipping step t changes the logit of step s
            if bool((seen := changed.tril()).any()):
                raise _reaction(density, number, seen, before, after)
            reacting, pairs = reacting + int(changed.sum()), pairs + density.dim * (density.dim - 1) // 2
            done += density.dim
    if densities[0].sees_all:
        _check_blind(densities[0], context.test[images[0]])
    return {"images": done // densities[0].dim // len(densities), "flips": done, "reacting": reacting / max(pairs, 1)}


def flipped(density: AutoregressiveDensity, image: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of an image, (T, n) in chain order: as it is, T times, and in row i with step ``steps[i]`` flipped."""
    x = image.repeat(len(steps), 1)
    y = x.clone()
    y[torch.arange(len(steps)), density.order.cpu()[steps]] ^= 1
    return logits(density, x), logits(density, y)


def _check_blind(density: AutoregressiveDensity, image: Tensor) -> None:
    random, generator = density.reference(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in random.parameters():
            parameter.copy_(SCALE * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    steps = torch.randperm(density.dim, generator=generator)[:FLIPS].sort().values
    before, after = flipped(random, image, steps)
    later = torch.arange(density.dim) > steps[:, None]
    if bool((blind := (before == after) & later).any()):
        i, s = first(blind)
        raise CheckFailed(
            f"whatever the parameters, flipping the pixel of step {int(steps[i])} does not change the logit of step "
            f"{s}: a blind spot. If that is meant, say sees_all = False in the class",
            flipped=int(steps[i]), step=s, pixel=int(density.order[s]),
        )  # fmt: skip


def _reaction(density: AutoregressiveDensity, number: int, seen: Tensor, before: Tensor, after: Tensor) -> CheckFailed:
    t, s = first(seen)
    a, b = float(before[t, s]), float(after[t, s])
    return CheckFailed(
        f"test image {number}: flipping the pixel of step {t} changes the logit of step {s} from {a:.9g} to {b:.9g}",
        image=number, flipped=t, step=s, pixel=int(density.order[s]), expected=a, found=b,
    )  # fmt: skip
