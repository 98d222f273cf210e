"""From a configuration to a record: the only place that instantiates whole configurations."""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from chainrule import runs, tables
from chainrule.callbacks import EpochLines, ProgressBar
from chainrule.data import Images
from chainrule.density import AutoregressiveDensity
from chainrule.module import DensityModule
from chainrule.pictures import save_completions, save_grid
from chainrule.runs import RunDir

log = logging.getLogger(__name__)

TRAIN_SUBSET = 10_000  # training images scored for the record: the first ones, as many as are in the test set
SCORE_BATCH = 1000

# What a number in the configuration may be. Models and data check what is theirs.
RANGES: dict[str, tuple[type, float, float]] = {
    "seed": (int, 0, 2**32 - 1),
    "samples": (int, 1, 10_000),
    "optimizer.lr": (float, 1e-12, 100),
    "optimizer.weight_decay": (float, 0, 100),
    "optimizer.momentum": (float, 0, 0.9999),
    "trainer.max_epochs": (int, 0, 1_000_000),
    "trainer.gradient_clip_val": (float, 1e-12, 1e12),
    "callbacks.ema.decay": (float, 0, 1),
    "callbacks.early_stopping.patience": (int, 1, 1_000_000),
    "n": (int, 1, 1_000_000),
    "draws": (int, 1, 1000),
    "keep": (float, 0, 1),
}


def check(cfg: DictConfig) -> None:
    """Looks at every number before anything costs time.

    Raises:
        ValueError: a number is mistyped or out of its range, or a mandatory value is missing.
    """
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise ValueError(f"missing: {', '.join(sorted(missing))}. Give it as {min(missing)}=…")
    for key, (kind, low, high) in RANGES.items():
        value = OmegaConf.select(cfg, key)
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if value is not None and not (number and low <= value <= high):
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{key} must be {what} from {low:g} to {high:g}, got {value!r}")


# ---- training ---------------------------------------------------------------------------------------


def train(cfg: DictConfig, run_dir: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """One run: fit, select on the validation images, score the test images once, write the record.

    Args:
        cfg: the composed configuration of ``conf/train.yaml``.
        run_dir: where everything goes.
        overrides: the words on the command line, for the record.

    Returns:
        The record, as it stands in ``result.json``.

    Raises:
        ValueError: the configuration cannot work, or training diverged.
        OSError: images cannot be found, or files not be written.
    """
    check(cfg)
    run = RunDir(Path(run_dir))
    if run.config.exists():
        raise ValueError(f"{run.path} holds a run already; give this one another hydra.run.dir")
    run.path.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, run.config, resolve=True)
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    data: Images = instantiate(cfg.data, _convert_="all")
    density: AutoregressiveDensity = instantiate(cfg.model, shape=data.shape, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    density.initialize(data.train[:, density.order])
    log.info(
        "%s with %s parameters on %s; everything goes to %s",
        model_name(cfg), f"{density.parameter_count:,}", data.name, run.path,
    )  # fmt: skip

    trainer, module, seconds = _fit(cfg, run, density, data)
    best = runs.load_model(run.path)
    scores = {split: nll_per_image(best, images) for split, images in _splits(data).items()}
    np.savez_compressed(run.nll_test, nll=scores["test"])
    record = {
        "schema": tables.SCHEMA,
        "model": model_name(cfg),
        "kernel": module.kernel,
        "order": cfg.model.order if isinstance(cfg.model.order, str) else "given",
        "parameters": {"count": best.parameter_count, "effective": best.effective_parameter_count},
        "data": {"name": data.name, "side": data.side, "n": best.dim, "sha256": data.sha256},
        "seed": cfg.seed,
        "nll": {split: statistics(nll) for split, nll in scores.items()},
        "bits_per_pixel": float(scores["test"].mean()) / math.log(2) / best.dim,
        "best_epoch": int(torch.load(run.best, weights_only=True)["epoch"]),
        "epochs": trainer.current_epoch,
        "seconds": seconds,
        "images_per_second": module.images_per_second,
        "sampling": _draw_samples(best, run, cfg),
        **runs.provenance(),
        "overrides": list(overrides),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
    _finish(trainer.loggers, record)
    runs.write_json(run.record, record)
    return record


def _fit(
    cfg: DictConfig, run: RunDir, density: AutoregressiveDensity, data: Images
) -> tuple[L.Trainer, DensityModule, float]:
    """Trains into ``run.checkpoints``; returns what trained, and the seconds it took."""
    module = DensityModule(
        density,
        optimizer=instantiate(cfg.optimizer, _convert_="all"),
        scheduler=instantiate(cfg.scheduler, _convert_="all"),
        train_size=len(data.train),
    )
    callbacks = _callbacks(cfg, run)
    make_trainer: Callable[..., L.Trainer] = instantiate(cfg.trainer, _partial_=True, _convert_="all")
    trainer = make_trainer(
        accelerator=_accelerator(cfg.trainer.accelerator),
        callbacks=callbacks,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        logger=_loggers(cfg, run) or False,
        default_root_dir=run.path,
    )
    started = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - started
    if not run.best.is_file():  # max_epochs=0: what is there was written down, not trained
        trainer.validate(module, datamodule=data, verbose=False)
        trainer.save_checkpoint(run.best)
    return trainer, module, seconds


def _accelerator(name: str) -> str:
    # Lightning's "auto" would take Apple's GPU, which has no float64 and none of our kernels.
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(f"trainer.accelerator={name}, but no CUDA GPU is at hand: use trainer.accelerator=cpu")
    return name


def _callbacks(cfg: DictConfig, run: RunDir) -> list[Callback]:
    chosen = [instantiate(callback, _convert_="all") for callback in cfg.callbacks.values()]
    return [*chosen, *_progress(cfg), *savers(run)]


def savers(run: RunDir) -> list[Callback]:
    """Write ``best.ckpt`` and ``last.ckpt``: two, since one with save_last does so only when there is a new best."""
    saver = partial(ModelCheckpoint, dirpath=run.checkpoints, enable_version_counter=False)
    return [saver(filename="best", monitor="val/nll", mode="min"), saver(filename="last")]


def _progress(cfg: DictConfig) -> list[Callback]:
    if not cfg.trainer.enable_progress_bar:
        return []
    return [ProgressBar(refresh_rate=25) if sys.stdout.isatty() else EpochLines()]


def _loggers(cfg: DictConfig, run: RunDir) -> list[Logger]:
    makers: Sequence[Callable[..., Logger]] = [instantiate(m, _convert_="all") for m in cfg.logger.values()]
    config = OmegaConf.to_container(cfg, resolve=True)
    return [make(run_dir=run.path, name=f"{model_name(cfg)}-s{cfg.seed}", config=config) for make in makers]


def _finish(loggers: Sequence[Logger], record: dict[str, Any]) -> None:
    test = record["nll"]["test"]
    summary = {"test/nll": test["mean"], "test/nll_stderr": test["stderr"]}
    for logger in loggers:
        logger.log_metrics(summary, step=None)
        logger.save()


def _draw_samples(density: AutoregressiveDensity, run: RunDir, cfg: DictConfig) -> dict[str, float]:
    """Writes ``samples.png``; returns the seconds for all its images at once, and for one alone."""
    (_, latency), (images, seconds) = _timed_sample(density, 1, cfg.seed), _timed_sample(density, cfg.samples, cfg.seed)
    save_grid(images, density.shape, run.samples)
    return {"images": cfg.samples, "seconds": seconds, "latency": latency}


def _timed_sample(density: AutoregressiveDensity, n: int, seed: int) -> tuple[Tensor, float]:
    density.sample(n)  # compiled here, where it is not timed
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    images = density.sample(n, generator)
    return images, time.perf_counter() - started


# ---- what a finished run can do ---------------------------------------------------------------------


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """The NLL of a run's selected model on a split of its own data, or of other data, recomputed.

    Returns:
        mean and standard error in nats, count, and the data's name and SHA-256.
    """
    check(cfg)
    density, config = runs.load_model(cfg.run), runs.load_config(runs.open_run(cfg.run))
    data = _load_data(cfg, OmegaConf.select(cfg, "data") or config.data)
    images = _splits(data).get(cfg.split)
    if images is None:
        raise ValueError(f"split must be train, valid or test, got {cfg.split!r}")
    if data.shape != density.shape:
        raise ValueError(
            f"the model was trained on {density.shape} images; {data.name} has {data.shape}: set data.side"
        )
    result = {"data": data.name, "split": cfg.split, "sha256": data.sha256[cfg.split]}
    return result | statistics(nll_per_image(density, images))


def sample(cfg: DictConfig) -> Path:
    """Draws ``n`` images and writes them as a grid (.png) or as bits (.npy); returns the file."""
    check(cfg)
    density = runs.load_model(cfg.run)
    images = density.sample(cfg.n, torch.Generator().manual_seed(cfg.seed))
    out = Path(cfg.out or Path(cfg.run) / f"samples-n{cfg.n}-s{cfg.seed}.png").expanduser()
    if out.suffix == ".npy":
        np.save(out, images.to(torch.uint8).view(-1, *density.shape).numpy())
    elif out.suffix == ".png":
        save_grid(images, density.shape, out)
    else:
        raise ValueError(f"out must end in .png or .npy, got {out}")
    return out


def complete(cfg: DictConfig) -> Path:
    """Completes test images from the first part of the order; writes original, masked and draws side by side."""
    check(cfg)
    density, config = runs.load_model(cfg.run), runs.load_config(runs.open_run(cfg.run))
    data = _load_data(cfg, config.data)
    generator = torch.Generator().manual_seed(cfg.seed)
    images = data.test[torch.randperm(len(data.test), generator=generator)[: cfg.n]]
    observed = torch.zeros(density.dim, dtype=torch.bool)
    observed[density.order[: round(cfg.keep * density.dim)]] = True
    draws = density.complete(images.repeat_interleave(cfg.draws, 0), observed, generator)
    out = Path(cfg.out or Path(cfg.run) / "completions.png").expanduser()
    save_completions(images, observed, draws.view(len(images), cfg.draws, -1), density.shape, out)
    return out


def _load_data(cfg: DictConfig, data_cfg: DictConfig) -> Images:
    paths = {"data_dir": cfg.paths.data_dir, "cache_dir": cfg.paths.cache_dir}  # of this machine, not of the run's
    data: Images = instantiate(data_cfg, **paths, _convert_="all")
    data.prepare_data()
    data.setup("test")
    return data


def _splits(data: Images) -> dict[str, Tensor]:
    return {"train": data.train[:TRAIN_SUBSET], "valid": data.valid, "test": data.test}


@torch.inference_mode()
def nll_per_image(density: AutoregressiveDensity, images: Tensor) -> np.ndarray:
    """−log p(x) in nats of each image, (N,) float64; the model computes in its own precision."""
    device = density.order.device
    nats = [-density.log_prob(x.to(device)).double().cpu() for x in images.split(SCORE_BATCH)]
    return torch.cat(nats).numpy()


def statistics(nll: np.ndarray) -> dict[str, float | int]:
    """Mean and standard error in nats: a float64 sum over all images, divided once by their count."""
    count = len(nll)
    stderr = float(nll.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    return {"mean": float(nll.sum()) / count, "stderr": stderr, "count": count}


def model_name(cfg: DictConfig) -> str:
    """The file that the model's class lives in: chainrule.models.nade.NADE is ``nade``."""
    return str(cfg.model._target_).split(".")[-2]


# What libraries say of themselves and nobody can act on.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
logging.getLogger("matplotlib").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.* is deprecated")
warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
