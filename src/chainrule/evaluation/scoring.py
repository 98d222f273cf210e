"""The NLL of images under a density: the only batched scorer, and what is made of its numbers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn import functional as F

from chainrule.data import Images
from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.runs.directory import RunDir, load_config, open_run
from chainrule.runs.load import checkpoint_sha256, instance, load_model
from chainrule.runs.record import Estimate, Record
from chainrule.runs.settings import check, public_config
from chainrule.validate import choice

log = logging.getLogger(__name__)

TRAIN_SUBSET = 10_000  # training images scored for the record: the first ones, as many as are in the test set
MUTE = 10.0  # seconds without a line
BATCH = 250  # images scored at once: of a deep model, a layer's outputs must fit into memory


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """The NLL of a run's selected model on a split of its own data, or of other data, recomputed.

    Returns:
        mean and standard error in nats, count, and the data's name and SHA-256.
    """
    check(cfg)
    run = open_run(cfg.run)
    density, config = load_model(cfg.run, trust=cfg.trust), load_config(run)
    given = OmegaConf.select(cfg, "data")
    data = load_data(cfg, given, str(given._target_)) if given else load_data(cfg, config.data)
    if run.record.is_file() and (what := _changed(Record.read(run.path), config, None if given else data)):
        raise ValueError(f"{run.path}: {what} changed after result.json was written: put back what was scored")
    if not run.record.is_file():
        log.warning("%s has not finished: what is scored are the best weights so far", run.path)
    images = splits(data)[choice("split", cfg.split, ("train", "valid", "test"))]
    if data.shape != density.shape:
        (height, width), (h, w) = density.shape, data.shape
        cure = f"data={data.name} data.side={height}" if height == width else "images of the model's size"
        raise ValueError(f"the model is of {height}×{width} images, and those of {data.name} are {h}×{w}: give {cure}")
    result = {"data": data.name, "split": cfg.split, "sha256": data.sha256[cfg.split]}
    return result | Estimate.of(nll_per_image(density, images)).model_dump()


def _changed(record: Record, config: DictConfig, data: Images | None) -> str:
    """What of a run is no longer what its record says; empty: nothing is."""
    if record.checkpoint_sha256 not in (None, checkpoint_sha256(RunDir(record.path))):
        return "checkpoints/best.ckpt has"
    for key in ("model", "orders"):
        if record.config.get(key) != public_config(config).get(key):
            return f"{key} in config.yaml has"
    return "the images have" if data and data.sha256 != record.data.sha256 else ""


def load_data(cfg: DictConfig, data_cfg: DictConfig, trust: str | None = None) -> Images:
    paths = {"data_dir": cfg.paths.data_dir, "cache_dir": cfg.paths.cache_dir}  # of this machine, not of the run's
    data = instance(data_cfg, Images, trust or cfg.get("trust"), **paths)  # type: ignore[type-abstract]
    data.prepare_data()
    data.setup("test")
    return data


def load_split(cfg: DictConfig) -> Tensor:
    """All images of a split of a run's own data."""
    data = load_data(cfg, load_config(open_run(cfg.run)).data)
    return {"train": data.train, "valid": data.valid, "test": data.test}[
        choice("split", cfg.split, ("train", "valid", "test"))
    ]


def splits(data: Images) -> dict[str, Tensor]:
    return {"train": data.train[:TRAIN_SUBSET], "valid": data.valid, "test": data.test}


@torch.inference_mode()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, device: torch.device) -> Tensor:
    """``function`` of images (N, n), a part of them at a time on the device: float64, on the CPU; slow ones say so."""
    found, done, said = [], 0, time.monotonic()
    for x in images.split(BATCH):
        found.append(function(x.to(device)).double().cpu())
        done += len(x)
        if time.monotonic() - said > MUTE and done < len(images):
            said = time.monotonic()
            log.info("scored %s of %s images", f"{done:,}", f"{len(images):,}")
    return torch.cat(found)


def nll_per_image(density: BinaryDensity, images: Tensor) -> np.ndarray:
    """−log p(x) in nats of each image, (N,) float64; the model computes in its own precision."""
    nll: np.ndarray = -in_batches(density.log_prob, images, density.device).numpy()
    return nll


def nll_and_pixels(density: AutoregressiveDensity, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """:func:`nll_per_image`, and its mean over images at each pixel, (n,) float64 nats, both in one pass."""

    def nats(x: Tensor) -> Tensor:
        z = x.to(density.dtype)[:, density.order]
        steps = -F.logsigmoid((2 * z - 1) * density.conditionals(z))
        return torch.cat([steps, steps.sum(1, keepdim=True)], 1)  # summed as log_prob does, to the last bit

    found = in_batches(nats, images, density.device)
    return found[:, -1].numpy(), found[:, :-1].mean(0)[density.order.argsort().cpu()].numpy()


def check_finite(scores: dict[str, np.ndarray]) -> None:
    """Raises a ValueError where an image has probability 0, or a number went bad: there is no mean to record."""
    for split, nll in scores.items():
        if bad := int((~np.isfinite(nll)).sum()):
            raise ValueError(
                f"the NLL of {bad:,} of {len(nll):,} {split} images is not finite: the model gives them probability 0. "
                "Set model.smoothing above 0 where the model has it, or lower optimizer.lr"
            )


def scored(density: BinaryDensity, data: Images, scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the record of any density says of its scores: of each split, the NLL of every image."""
    return {
        "parameters": {"count": density.parameter_count, "effective": density.effective_parameter_count},
        "data": data.about,
        "nll": {split: Estimate.of(nll) for split, nll in scores.items()},
        "bits_per_pixel": float(scores["test"].mean()) / math.log(2) / density.dim,
    }
