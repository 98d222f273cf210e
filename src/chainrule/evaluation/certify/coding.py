"""Test images, coded with nothing but the model, come back, and take what the record says of each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chainrule.density import AutoregressiveDensity
from chainrule.evaluation import coding
from chainrule.evaluation.certify.context import (
    SMALL,
    CheckFailed,
    Context,
    Figures,
    combined,
    first,
    networks,
)
from chainrule.evaluation.coding import Coded

TOLERANCE = 1e-3  # how far the coded size may be from the NLL, and that of one image from 1 + its NLL; relative
STATE = 64  # bits that the coder may need to end, whatever it has coded
WAYS = {"walk": (2, 16), "cache": (8, 32), "fixed point": (2, 8)}  # of coding; images that say what it costs


def lossless(context: Context) -> Figures:
    """Test images, coded with the model's conditionals, come back bit for bit, each at the size of its NLL.

    By the model's own walk where it has one, which caches what it has computed; by the default walk, which recomputes
    everything at every step, for small images; else from guesses that the decoder corrects: a fixed point. What is
    made of several networks or orders is coded with each, and their probabilities averaged.
    """
    parts = networks(context.density)
    by = "cache" if parts[0].has_cache else "walk" if parts[0].dim <= SMALL else "fixed point"
    images = context.chosen(context.n)

    streams: list[Coded] = []

    def of_first(count: int) -> list[Coded]:
        return _coded(parts[0], by, images, context.test[images[:count]])

    def log_prob(density: AutoregressiveDensity) -> Tensor:
        found = _coded(density, by, images, context.test[images])
        streams.extend(found)
        return -torch.cat([one.nats for one in found])

    count = context.affordable(of_first, 0.25 / len(parts), len(images), WAYS[by])
    images = images[:count]
    nats = -combined(context.density, log_prob)
    bits, ideal = sum(one.bits for one in streams), sum(one.ideal for one in streams)
    nll = context.nll[images]
    if bool((wrong := ~((nats - nll).abs() <= TOLERANCE * (1 + nll.abs()))).any()):
        (i,) = first(wrong)
        raise CheckFailed(
            f"test image {images[i]} takes {float(nats[i]):.6f} nats, coded, but its NLL is {float(nll[i]):.6f}",
            image=images[i], expected=float(nll[i]), found=float(nats[i]),
        )  # fmt: skip
    total = float(nll.sum()) / math.log(2)
    if len(parts) == 1 and not -TOLERANCE * total <= bits - total <= TOLERANCE * total + STATE * len(streams):
        raise CheckFailed(
            f"{count:,} test images take {bits:,} bits, but their NLL is {total:,.1f} bits",
            images=count, expected=total, found=bits,
        )  # fmt: skip
    return {
        "by": by,
        "images": count,
        "networks": len(parts),
        "bits": bits,
        "nll_bits": total,
        "nats_per_image": float(nats.mean()),
        "difference": float((nats - nll).abs().max()),
        "coder_overhead": bits / ideal - 1 if ideal else 0.0,
        "clamped": sum(one.clamped for one in streams),
    }


def _coded(density: AutoregressiveDensity, by: str, images: list[int], x: Tensor) -> list[Coded]:
    """Streams of images x that have been decoded again."""
    try:
        streams = coding.encode_each(density, x) if by == "fixed point" else [coding.encode(density, x)]
    except ValueError as error:
        raise CheckFailed(str(error)) from error
    if by == "fixed point":
        decoded = coding.decode_each(density, [one.words for one in streams])
    else:
        decoded = coding.decode(density, streams[0].words, len(x))
    if not torch.equal(decoded, x):
        i, pixel = first(decoded != x)
        a, b = int(x[i, pixel]), int(decoded[i, pixel])
        raise CheckFailed(
            f"test image {images[i]}, pixel {pixel}: decoded as {b}, was {a}",
            image=images[i], pixel=pixel, expected=a, found=b,
        )  # fmt: skip
    return streams
