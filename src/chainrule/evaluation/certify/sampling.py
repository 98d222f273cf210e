"""What the model draws is distributed as it says."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation.certify.context import CheckFailed, Context, Figures
from chainrule.evaluation.scoring import in_batches
from chainrule.mixture import Mixture
from chainrule.runs.record import Estimate

IMAGES = 1000  # drawn, and chosen from the test images
LIMIT = 5.0  # standard errors; an honest sampler exceeds them once in a million times


def sampling(context: Context) -> Figures:
    """The mean ``log_prob`` of the model's own samples and of test images, and that the samples are the model's.

    Of every sample, the log-likelihood and the number of ones are compared with what the model itself expected of
    them. The differences have mean 0 and a known variance, if the samples are drawn from the model.
    """
    density, generator = context.density, context.generator()
    parts = [density.sample(len(part), generator).cpu() for part in context.within(0.1, IMAGES, start=50)]
    x, tested = torch.cat(parts), context.nll[context.chosen(IMAGES)]
    z = _conditionals(density, x) if isinstance(density, AutoregressiveDensity) else _whole(density, x)
    drawn = in_batches(density.log_prob, x, density.device)
    return {
        "samples": Estimate.of(drawn.numpy()).model_dump(),
        "test": Estimate.of(-tested.numpy()).model_dump(),
        "z": z,
    }


def _conditionals(density: AutoregressiveDensity, x: Tensor) -> dict[str, float]:
    """Pixel by pixel: the sums of independent surprises that each have mean 0, given the pixels before them."""
    logits = in_batches(density, x, density.device)
    p, z = logits.sigmoid(), x.double()
    nats = F.logsigmoid((2 * z - 1) * logits)
    expected = p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits)
    variance = p * (1 - p)
    return {
        "log_prob": _agreeing("log_prob of a sample", nats.sum(1), expected.sum(1), (variance * logits**2).sum()),
        "ones": _agreeing("number of ones in a sample", z.sum(1), p.sum(1), variance.sum()),
    }


def _whole(density: BinaryDensity, x: Tensor) -> dict[str, float]:
    """Without conditionals: a sample of a mixture comes from each member equally often, as its probability says."""
    assert isinstance(density, Mixture)
    nats = torch.stack([in_batches(member.log_prob, x, density.device) for member in density.members])
    shares = nats.softmax(0)  # (K, N): the probability that member k drew the sample
    expected = torch.full_like(shares[0], 1 / len(shares))
    return {
        f"member {k}": _agreeing(f"share of member {k} in a sample", share, expected, (share - expected).square().sum())
        for k, share in enumerate(shares)
    }


def _agreeing(what: str, found: Tensor, expected: Tensor, variance: Tensor) -> float:
    """The sum of differences in units of its standard deviation.

    Raises:
        CheckFailed: it is beyond the limit.
    """
    difference = float((found - expected).sum())
    z = difference / math.sqrt(variance) if variance > 0 else math.inf if difference else 0.0
    if not abs(z) < LIMIT:
        a, b = float(expected.mean()), float(found.mean())
        raise CheckFailed(
            f"the {what} is {b:.6g} on average, but {a:.6g} by the model itself: {z:.1f} standard errors",
            images=len(found), expected=a, found=b, z=z,
        )  # fmt: skip
    return z
