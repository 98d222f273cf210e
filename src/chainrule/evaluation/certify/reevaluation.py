"""The numbers in the record are those of the checkpoint on the images that the record names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from chainrule.data import Images
from chainrule.density import AutoregressiveDensity
from chainrule.evaluation.certify.context import (
    CheckFailed,
    Context,
    Figures,
    combined,
    log_conditionals,
    logits,
    walked,
)
from chainrule.evaluation.scoring import splits
from chainrule.runs.certificate import verdict
from chainrule.runs.directory import RunDir, load_config
from chainrule.runs.fingerprint import model_name
from chainrule.runs.nll import FILE, disagreement
from chainrule.runs.record import Estimate, Record
from chainrule.runs.settings import public_config, settings

TOLERANCE = 1e-4  # nats: how far a recomputed mean may be from the record's
IMAGE = 1e-3  # the same for one image, relative to 1 + its NLL: a float32 sum of hundreds of terms
LIMIT = 5.0  # standard errors between the mean over some images and the record's over all


def reevaluation(context: Context, run: RunDir, record: Record, data: Images) -> Figures:
    """The numbers of the record, from the checkpoint, over exactly the images that it names, in order.

    The NLL of each test image in float64, and from them the mean, its standard error and bits per pixel; the means over
    training and validation images in the model's own precision. Of a costly model, of as many images as there is time
    for, chosen at random.
    """
    _check_images(record, data)
    _check_configuration(record, load_config(run), context)
    recorded = context.nll.numpy()
    for what, count in (("the record counts", record.test.count), (f"{FILE} has", len(recorded))):
        if count != len(data.test):
            raise CheckFailed(
                f"there are {len(data.test):,} test images, but {what} {count:,}", expected=len(data.test), found=count
            )
    numbers, nll = _scored(context, data.test, 0.2, lambda x: -combined(context.exact, lambda part: _walked(part, x)))
    _check_each(numbers, nll, recorded[numbers])
    if reason := disagreement(record, recorded):
        raise CheckFailed(f"the NLLs in {FILE} are not the record's: {reason}")
    _check_mean("test", Estimate.of(nll), record)
    counts = {}
    for split, images in splits(data).items():
        if split in record.nll and split != "test":
            _, found = _scored(context, images, 0.08, lambda x: -context.density.log_prob(x.to(context.density.device)))
            _check_mean(split, Estimate.of(found), record)
            counts[f"{split}_images"] = len(found)
    keys = [bytes(image) for image in np.packbits(data.test.numpy(), axis=1)]
    known = {bytes(image) for image in np.packbits(data.train.numpy(), axis=1)}
    return {
        "nll": float(nll.mean()),
        "record": record.test.mean,
        "difference": float((nll - recorded[numbers]).mean()),
        "count": len(nll),
        **counts,
        "sha256": data.sha256["test"],
        "distinct": len(set(keys)),
        "also_in_training": sum(key in known for key in keys),
    }


def _check_images(record: Record, data: Images) -> None:
    """The same bytes: so none was left out, repeated or moved."""
    if data.name != record.data.name:
        raise CheckFailed(f"the images are {data.name}, but {record.data.name} in the record")
    for split, recorded in record.data.sha256.items():
        if (found := data.sha256.get(split)) != recorded:
            raise CheckFailed(
                f"the {split} images have SHA-256 {found}, but {recorded} in the record",
                split=split, expected=recorded, found=found,
            )  # fmt: skip


def _check_configuration(record: Record, config: DictConfig, context: Context) -> None:
    """What the record says of model, data and settings is what ``config.yaml`` and the checkpoint say."""
    density, mixture = context.density, config.get("members")
    order = record.order if config.get("orders") else config.model.get("order", record.order)
    pairs: dict[str, tuple[object, object]] = {
        "parameters": (
            (density.parameter_count, density.effective_parameter_count),
            (record.parameters.count, record.parameters.effective),
        ),
        "model": ("mixture" if mixture else model_name(config), record.model),
        "class": (config.model._target_, record.target),
        "order": (order if isinstance(order, str | None) else "given", record.order),
        "shape": (density.shape, record.data.size),
        "seed": (config.seed, record.seed),
        **{key: (value, record.settings.get(key)) for key, value in settings(public_config(config)).items()},
    }
    for key, (found, recorded) in pairs.items():
        if found != recorded:
            raise CheckFailed(
                f"{key} is {found} by checkpoint and config.yaml, but {recorded} in the record",
                expected=str(found), found=str(recorded),
            )  # fmt: skip


def _scored(
    context: Context, images: Tensor, share: float, nats: Callable[[Tensor], Tensor]
) -> tuple[list[int], NDArray[np.float64]]:
    """As many images as a share of the time allows, in random order: their numbers, and the NLL of each."""
    order = torch.randperm(len(images), generator=context.generator())
    scored: list[Tensor] = []
    with torch.inference_mode():
        for part in context.within(share, len(images)):
            scored.append(nats(images[order[part.start : part.stop]]).double().cpu())
    nll = torch.cat(scored).numpy()
    return order[: len(nll)].tolist(), nll


def _walked(density: AutoregressiveDensity, x: Tensor) -> Tensor:
    """A model with a walk of its own is followed along it: each pixel is predicted before the model has seen it."""
    return log_conditionals(density, x, walked(density, x) if density.has_cache else logits(density, x)).sum(1)


def _check_each(numbers: list[int], nll: NDArray[np.float64], recorded: NDArray[np.float64]) -> None:
    """The NLLs of single images, in the order of the test set."""
    wrong = ~(np.abs(recorded - nll) <= IMAGE * (1 + np.abs(nll)))
    if wrong.any():
        i = int(wrong.argmax())
        raise CheckFailed(
            f"test image {numbers[i]} has an NLL of {nll[i]:.6f} nats, but {recorded[i]:.6f} in {FILE}",
            image=numbers[i], expected=float(nll[i]), found=float(recorded[i]),
        )  # fmt: skip


def _check_mean(split: str, found: Estimate, record: Record) -> None:
    """Over all images it is the record's; over some it is so within its standard error."""
    recorded = record.nll[split]
    tolerance = TOLERANCE if found.count == recorded.count else LIMIT * found.stderr
    if found.count > recorded.count or not abs(found.mean - recorded.mean) <= tolerance:
        raise CheckFailed(
            f"the mean {split} NLL is {found.mean:.6f} nats over {found.count:,} images, but {recorded.mean:.6f} over "
            f"{recorded.count:,} in the record",
            expected=found.mean, found=recorded.mean,
        )  # fmt: skip
    if found.count == recorded.count and not abs(found.stderr - recorded.stderr) <= TOLERANCE:
        raise CheckFailed(
            f"the standard error of the {split} NLL is {found.stderr:.6f}, but {recorded.stderr:.6f} in the record",
            expected=found.stderr, found=recorded.stderr,
        )  # fmt: skip


def members(run: RunDir) -> Figures:
    """Of a mixture: every member has a valid certificate of its own."""
    folders = [run.path / member.run for member in load_config(run).members]
    for folder in folders:
        found = verdict(folder, Record.read(folder))
        if found is None or not found.certified:
            reason = found.objection if found else f"certify it first: chainrule certify run={folder}"
            raise CheckFailed(f"member {folder} is not certified ({reason})", member=str(folder))
    return {"members": len(folders)}
