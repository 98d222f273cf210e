"""The number in the record is that of the checkpoint on the images that the record names."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chainrule.data import Images
from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation.certify.subject import BATCH, Figures, Refuted, Subject, in_batches, log_conditionals, walked
from chainrule.mixture import Mixture
from chainrule.reporting import tables
from chainrule.reporting.tables import Record
from chainrule.runs.directory import RunDir, load_config

TOLERANCE = 1e-4  # nats: how far the recomputed mean may be from the record's
IMAGE = 1e-3  # the same for one image, relative to 1 + its NLL: a float32 sum of hundreds of terms


def recomputation(subject: Subject, run: RunDir, record: Record, data: Images) -> Figures:
    """The mean test NLL, in float64 from the checkpoint, over exactly the images that the record names, in order."""
    _check_images(record, data)
    nll = -log_prob(subject.exact, data.test)
    _check_count(len(nll), record)
    mean, recorded = float(nll.mean()), record.nll["test"].mean
    if not abs(mean - recorded) <= TOLERANCE:
        raise Refuted(
            f"the mean test NLL is {mean:.6f} nats in float64, but {recorded:.6f} in the record",
            expected=mean, found=recorded,
        )  # fmt: skip
    _check_each(nll, run)
    return {
        "nll": mean,
        "record": recorded,
        "difference": mean - recorded,
        "count": len(nll),
        "sha256": data.sha256["test"],
        "distinct": _distinct(data.test),
        "also_in_training": _shared(data.test, data.train),
    }


def _check_images(record: Record, data: Images) -> None:
    """The same bytes: so none was left out, repeated or moved."""
    for split, recorded in record.raw["data"]["sha256"].items():
        if (found := data.sha256.get(split)) != recorded:
            raise Refuted(
                f"the {split} images have SHA-256 {found}, but {recorded} in the record",
                split=split, expected=recorded, found=found,
            )  # fmt: skip


def _check_count(count: int, record: Record) -> None:
    if count != record.nll["test"].count:
        raise Refuted(
            f"there are {count:,} test images, but the record counts {record.nll['test'].count:,}",
            expected=count, found=record.nll["test"].count,
        )  # fmt: skip


def _check_each(nll: Tensor, run: RunDir) -> None:
    """The NLLs of single images, in the order of the test set."""
    recorded, name = _recorded(run), run.nll_test.name
    if len(recorded) != len(nll):
        raise Refuted(
            f"{name} has the NLL of {len(recorded):,} images, but there are {len(nll):,}",
            expected=len(nll), found=len(recorded),
        )  # fmt: skip
    wrong = ~((recorded - nll).abs() <= IMAGE * (1 + nll.abs()))
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0, 0])
        a, b = float(nll[i]), float(recorded[i])
        raise Refuted(
            f"test image {i} has an NLL of {a:.6f} nats, but {b:.6f} in {name}",
            image=i, expected=a, found=b,
        )  # fmt: skip


def _recorded(run: RunDir) -> Tensor:
    try:
        with np.load(run.nll_test, allow_pickle=False) as file:
            return torch.from_numpy(file["nll"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{run.nll_test} is damaged ({error})") from error


def log_prob(density: BinaryDensity, x: Tensor) -> Tensor:
    """log p(x) in nats, (N,) float64.

    A model with a walk of its own is followed along it: each pixel is predicted before the model has seen it.
    """
    if isinstance(density, Mixture):
        members = torch.stack([log_prob(member, x) for member in density.members])
        return members.logsumexp(0) - math.log(len(members))
    if isinstance(density, AutoregressiveDensity) and type(density).walk is not AutoregressiveDensity.walk:
        return torch.cat([log_conditionals(density, part, walked(density, part)).sum(1) for part in x.split(BATCH)])
    return in_batches(density.log_prob, density, x)


def _distinct(images: Tensor) -> int:
    return len(_keys(images))


def _shared(images: Tensor, others: Tensor) -> int:
    """How many of the images are among the others, too."""
    known = _keys(others)
    return sum(key in known for key in map(bytes, _packed(images)))


def _keys(images: Tensor) -> set[bytes]:
    return set(map(bytes, _packed(images)))


def _packed(images: Tensor) -> np.ndarray:
    packed: np.ndarray = np.packbits(images.numpy(), axis=1)
    return packed


def members(run: RunDir) -> Figures:
    """Of a mixture: every member has a valid certificate of its own."""
    folders = [run.path / member.run for member in load_config(run).members]
    for folder in folders:
        verdict = tables.read_record(folder).verdict
        if verdict is None or not verdict.certified:
            reason = verdict.objection if verdict else f"certify it first: chainrule certify run={folder}"
            raise Refuted(f"member {Path(folder)} is not certified ({reason})", member=str(folder))
    return {"members": len(folders)}
