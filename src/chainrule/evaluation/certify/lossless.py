"""Test images, coded with nothing but the model, come back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chainrule.density import AutoregressiveDensity
from chainrule.evaluation import coding
from chainrule.evaluation.certify.subject import Figures, Refuted, Subject, autoregressive, first, in_batches

TOLERANCE = 1e-3  # how far the coded size may be from the NLL, relative to it
STATE = 64  # bits that the coder may need to end, whatever it has coded


def lossless(subject: Subject) -> Figures:
    """Test images, coded with the model's conditionals, come back bit for bit, at the size that the NLL promises."""
    density = autoregressive(subject.density, "to code pixels with")
    images = subject.chosen(subject.n)
    x = subject.test[images]
    nll = -float(in_batches(density.log_prob, density, x).sum()) / math.log(2)
    coded = _encoded(density, x)
    _check_decoded(images, x, coding.decode(density, coded.words, len(x)))
    if not -TOLERANCE * nll <= coded.bits - nll <= TOLERANCE * nll + STATE:
        raise Refuted(
            f"{len(images):,} test images take {coded.bits:,} bits, but their NLL is {nll:,.1f} bits",
            images=len(images), expected=nll, found=coded.bits,
        )  # fmt: skip
    return {
        "images": len(images),
        "bits": coded.bits,
        "nll_bits": nll,
        "nats_per_image": coded.bits * math.log(2) / len(images),
        "above_nll": coded.bits / nll - 1 if nll else 0.0,
        "coder_overhead": coded.bits / coded.ideal - 1 if coded.ideal else 0.0,
        "clamped": coded.clamped,
    }


def _encoded(density: AutoregressiveDensity, x: Tensor) -> coding.Coded:
    try:
        return coding.encode(density, x)
    except ValueError as error:
        raise Refuted(str(error)) from error


def _check_decoded(images: list[int], x: Tensor, decoded: Tensor) -> None:
    if not torch.equal(decoded, x):
        i, pixel = first(decoded != x)
        a, b = int(x[i, pixel]), int(decoded[i, pixel])
        raise Refuted(
            f"test image {images[i]}, pixel {pixel}: decoded as {b}, was {a}",
            image=images[i], pixel=pixel, expected=a, found=b,
        )  # fmt: skip
