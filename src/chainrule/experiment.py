"""From a configuration to a record: the only place that instantiates whole configurations."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn import functional as F

from chainrule import runs, tables
from chainrule.callbacks import EpochLines, ProgressBar
from chainrule.checkpoints import PREVIOUS, Progress, Savers, SealedFiles, progress, restore_metrics, resumable
from chainrule.dashboard.shown import Dashboard, conclude
from chainrule.dashboard.tracker import Tracker
from chainrule.data import Images
from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.files import content_of, remove_parts, write_whole
from chainrule.module import DensityModule
from chainrule.pictures import save_completions, save_grid
from chainrule.processes import Child, parent_of
from chainrule.runs import RunDir

log = logging.getLogger(__name__)

TRAIN_SUBSET = 10_000  # training images scored for the record: the first ones, as many as are in the test set
SCORE_BATCH = 1000
COMPLETED = 8  # test images in a run's completions.png
SIGTERM_CODE = 143

# What a number in the configuration may be. Models and data check what is theirs.
RANGES: dict[str, tuple[type, float, float]] = {
    "seed": (int, 0, 2**32 - 1),
    "samples": (int, 1, 10_000),
    "optimizer.lr": (float, 1e-12, 100),
    "optimizer.weight_decay": (float, 0, 100),
    "optimizer.momentum": (float, 0, 0.9999),
    "trainer.max_epochs": (int, 0, 1_000_000),
    "trainer.devices": (int, 1, 64),
    "trainer.gradient_clip_val": (float, 1e-12, 1e12),
    "callbacks.ema.decay": (float, 0, 1),
    "callbacks.early_stopping.patience": (int, 1, 1_000_000),
    "logger.wandb.pictures": (int, 1, 1_000_000),
    "search.trials": (int, 1, 1_000_000),
    "search.seconds": (float, 1, 1e9),
    "n": (int, 1, 1_000_000),
    "draws": (int, 1, 1000),
    "k": (int, 12, 20),
    "keep": (float, 0, 1),
}

CHOICES = {"resume": ("auto", "never"), "trainer.accelerator": ("auto", "cpu", "cuda", "gpu")}


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
    for key, choices in CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value not in choices:
            raise ValueError(f"{key} must be {' or '.join(choices)}, got {value!r}")
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if threads > 8 * cores:
        raise ValueError(f"{threads} threads are too many for {cores} cores: set OMP_NUM_THREADS={cores}, or less")


# ---- training ---------------------------------------------------------------------------------------


def train(cfg: DictConfig, run_dir: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """One run: fit, select on the validation images, score the test images once, write the record.

    A run that was interrupted in this directory goes on from its last epoch; of one that has finished, the record is
    returned at once.

    Args:
        cfg: the composed configuration of ``conf/train.yaml``.
        run_dir: where everything goes.
        overrides: the words on the command line, for the record.

    Returns:
        The record, as it stands in ``result.json``.

    Raises:
        ValueError: the configuration cannot work, training diverged, or the directory holds another run.
        OSError: images cannot be found, or files not be written.
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: with code 143, the process was asked to end (SIGTERM).
    """
    run = RunDir(Path(run_dir))
    with runs.lock(run.path):
        if record := runs.earlier(run, cfg):
            log.info("%s is finished already", run.path)
            return record
        with runs.failure_noted(run):
            fitted = _fit(cfg, run)
            return _record(cfg, run, fitted, overrides)


@dataclass(frozen=True)
class Fitted:
    """A density that was trained and selected on the validation images; no test image has been looked at."""

    density: AutoregressiveDensity
    data: Images
    valid: np.ndarray  # NLL of each validation image in nats, (N,) float64
    progress: Progress
    loggers: Sequence[Logger]

    @property
    def nll(self) -> float:
        """The mean NLL of the validation images in nats."""
        return float(self.valid.mean())


def fit(cfg: DictConfig, run_dir: str | Path, callbacks: Sequence[Callback] = ()) -> Fitted:
    """Trains and selects, and leaves the test images alone: what a search needs.

    It goes on where it was interrupted, as :func:`train` does, and leaves no record.

    Args:
        cfg: the composed configuration of ``conf/train.yaml``.
        run_dir: where everything goes.
        callbacks: more than the configuration names.

    Raises:
        ValueError, OSError, KeyboardInterrupt, SystemExit: as :func:`train`.
    """
    run = RunDir(Path(run_dir))
    with runs.lock(run.path):
        runs.earlier(run, cfg)
        return _fit(cfg, run, callbacks)


def _fit(cfg: DictConfig, run: RunDir, callbacks: Sequence[Callback] = ()) -> Fitted:
    check(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data, density = _build(cfg)
    runs.claim(run, cfg)
    log.info(
        "%s with %s parameters on %s; everything goes to %s",
        model_name(cfg), f"{density.parameter_count:,}", data.name, run.path,
    )  # fmt: skip
    module = _module(cfg, density, data)
    trainer = _trainer(cfg, run, [*callbacks, Savers(run.checkpoints)])
    _run(trainer, module, data, run)
    best = runs.load_selected(run)
    return Fitted(best, data, nll_per_image(best, data.valid), progress(run.checkpoints), trainer.loggers)


def _build(cfg: DictConfig) -> tuple[Images, AutoregressiveDensity]:
    """The images, in memory, and the density as it is before the first step."""
    data: Images = instantiate(cfg.data, _convert_="all")
    density: AutoregressiveDensity = instantiate(cfg.model, shape=data.shape, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    density.initialize(data.train[:, density.order])
    return data, density


def _module(cfg: DictConfig, density: AutoregressiveDensity, data: Images) -> DensityModule:
    return DensityModule(
        density,
        optimizer=instantiate(cfg.optimizer, _convert_="all"),
        scheduler=instantiate(cfg.scheduler, _convert_="all"),
        train_size=len(data.train),
        seed=cfg.seed,
    )


def _trainer(cfg: DictConfig, run: RunDir, callbacks: Sequence[Callback]) -> L.Trainer:
    chosen = [*_callbacks(cfg), *callbacks, Child()]
    make_trainer: Callable[..., L.Trainer] = instantiate(cfg.trainer, _partial_=True, _convert_="all")
    try:
        return make_trainer(
            accelerator=_accelerator(cfg.trainer.accelerator),
            callbacks=chosen,
            plugins=[SealedFiles()],
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in chosen),
            logger=_loggers(cfg, run) or False,
            default_root_dir=run.path,
        )
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error


def _run(trainer: L.Trainer, module: DensityModule, data: Images, run: RunDir) -> None:
    """Trains into ``run.checkpoints``, from the last of them where there is one."""
    remove_parts(run.path)
    checkpoint = resumable(run.checkpoints)
    if checkpoint:
        log.info("going on from %s", checkpoint)
    with _interruptible(trainer), parent_of(trainer):
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    if trainer.num_devices > 1:  # the processes that trained are gone, and with them what their loggers knew
        restore_metrics(trainer, run.checkpoints)
    if not run.best.is_file():  # max_epochs=0: what is there was written down, not trained
        with _interruptible(trainer):
            trainer.validate(module, datamodule=data, verbose=False)
        trainer.save_checkpoint(run.best)


@contextmanager
def _interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Lightning ends a process that is asked to end with code 0, and one that is interrupted with code 1."""
    try:
        yield
        if trainer.received_sigterm:  # after the last step, where Lightning no longer looks
            raise SIGTERMException
    except SIGTERMException:
        raise SystemExit(SIGTERM_CODE) from None
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def _record(cfg: DictConfig, run: RunDir, fitted: Fitted, overrides: Sequence[str]) -> dict[str, Any]:
    """Scores what was fitted, and writes everything that a finished run has, the record last."""
    best, data = fitted.density, fitted.data
    train, _, test = splits(data).values()
    scores = {"train": nll_per_image(best, train), "valid": fitted.valid, "test": nll_per_image(best, test)}
    _check_finite(scores)
    pixels = nats_per_pixel(best, test)
    save_test(run, nll=scores["test"], pixels=pixels)
    save_completed(best, test[:COMPLETED], run.completions, seed=cfg.seed)
    record = {
        "schema": tables.SCHEMA,
        "model": model_name(cfg),
        "kernel": fitted.progress.kernel,
        "order": cfg.model.order if isinstance(cfg.model.order, str) else "given",
        **scored(best, data, scores),
        "seed": cfg.seed,
        "best_epoch": fitted.progress.best_epoch,
        "epochs": fitted.progress.epochs,
        "seconds": fitted.progress.seconds,
        "images_per_second": fitted.progress.images_per_second,
        "sampling": draw_samples(best, run, cfg),
        "checkpoint_sha256": runs.checkpoint_sha256(run),
        **runs.provenance(),
        "overrides": runs.public_words(overrides),
        "config": runs.public_config(cfg),
    }
    _finish(fitted, run, record, nll=scores["test"], pixels=pixels)
    runs.write_json(run.record, record)
    (run.checkpoints / PREVIOUS).unlink(missing_ok=True)  # nobody goes on from there any more
    return record


def _check_finite(scores: dict[str, np.ndarray]) -> None:
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
        "data": {"name": data.name, "side": data.side, "n": density.dim, "sha256": data.sha256},
        "nll": {split: statistics(nll) for split, nll in scores.items()},
        "bits_per_pixel": float(scores["test"].mean()) / math.log(2) / density.dim,
    }


def _accelerator(name: str) -> str:
    # Lightning's "auto" would take Apple's GPU, which has no float64 and none of our kernels.
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(f"trainer.accelerator={name}, but no CUDA GPU is at hand: use trainer.accelerator=cpu")
    return name


def _callbacks(cfg: DictConfig) -> list[Callback]:
    chosen = [instantiate(callback, _convert_="all") for callback in cfg.callbacks.values()]
    return [Dashboard(), *chosen, *_progress(cfg)]  # in front: callbacks behind one that averages see raw weights


def _progress(cfg: DictConfig) -> list[Callback]:
    if not cfg.trainer.enable_progress_bar:
        return []
    return [ProgressBar(refresh_rate=25) if sys.stdout.isatty() else EpochLines()]


def _loggers(cfg: DictConfig, run: RunDir) -> list[Logger]:
    makers: Sequence[Callable[..., Logger]] = [instantiate(m, _convert_="all") for m in cfg.logger.values()]
    about = {"name": f"{model_name(cfg)}-s{cfg.seed}", "model": model_name(cfg), "data": data_name(cfg)}
    return [make(run_dir=run.path, config=runs.public_config(cfg), **about) for make in makers]


def _finish(fitted: Fitted, run: RunDir, record: dict[str, Any], *, nll: np.ndarray, pixels: np.ndarray) -> None:
    """Tells the loggers how it ended."""
    test = record["nll"]["test"]
    for logger in fitted.loggers:
        if isinstance(logger, Tracker):
            conclude(
                logger, run, record, steps=fitted.progress.steps, density=fitted.density, images=fitted.data.test,
                nll=nll, pixels=pixels,
            )  # fmt: skip
        else:
            logger.log_metrics({"test/nll": test["mean"], "test/nll_stderr": test["stderr"]}, step=None)
        logger.save()


def draw_samples(density: BinaryDensity, run: RunDir, cfg: DictConfig) -> dict[str, float]:
    """Writes ``samples.png``; returns the seconds for all its images at once, and for one alone."""
    (_, latency), (images, seconds) = _timed_sample(density, 1, cfg.seed), _timed_sample(density, cfg.samples, cfg.seed)
    save_grid(images, density.shape, run.samples)
    return {"images": cfg.samples, "seconds": seconds, "latency": latency}


def _timed_sample(density: BinaryDensity, n: int, seed: int) -> tuple[Tensor, float]:
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
    data = load_data(cfg, OmegaConf.select(cfg, "data") or config.data)
    images = splits(data).get(cfg.split)
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
        bits = images.to(torch.uint8).view(-1, *density.shape).numpy()
        write_whole(out, content_of(lambda file: np.save(file, bits, allow_pickle=False)))
    elif out.suffix == ".png":
        save_grid(images, density.shape, out)
    else:
        raise ValueError(f"out must end in .png or .npy, got {out}")
    return out


def complete(cfg: DictConfig) -> Path:
    """Completes test images from the first part of the order; writes original, masked and draws side by side."""
    check(cfg)
    density, config = runs.load_autoregressive(cfg.run), runs.load_config(runs.open_run(cfg.run))
    data = load_data(cfg, config.data)
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(cfg.seed))[: cfg.n]
    out = Path(cfg.out or Path(cfg.run) / "completions.png").expanduser()
    save_completed(density, data.test[chosen], out, keep=cfg.keep, draws=cfg.draws, seed=cfg.seed)
    return out


def save_completed(
    density: AutoregressiveDensity, images: Tensor, path: Path, *, keep: float = 0.5, draws: int = 6, seed: int = 0
) -> None:
    """Completes images (B, n) from the first ``keep`` of the order, ``draws`` times each, and writes them as a grid."""
    observed = torch.zeros(density.dim, dtype=torch.bool)
    observed[density.order[: round(keep * density.dim)]] = True
    generator = torch.Generator().manual_seed(seed)
    drawn = density.complete(images.repeat_interleave(draws, 0), observed, generator)
    save_completions(images, observed, drawn.view(len(images), draws, -1), density.shape, path)


def load_data(cfg: DictConfig, data_cfg: DictConfig) -> Images:
    paths = {"data_dir": cfg.paths.data_dir, "cache_dir": cfg.paths.cache_dir}  # of this machine, not of the run's
    data = runs.instance(data_cfg, Images, **paths)  # type: ignore[type-abstract]
    data.prepare_data()
    data.setup("test")
    return data


def splits(data: Images) -> dict[str, Tensor]:
    return {"train": data.train[:TRAIN_SUBSET], "valid": data.valid, "test": data.test}


@torch.inference_mode()
def nll_per_image(density: BinaryDensity, images: Tensor) -> np.ndarray:
    """−log p(x) in nats of each image, (N,) float64; the model computes in its own precision."""
    device = density.device
    nats = [-density.log_prob(x.to(device)).double().cpu() for x in images.split(SCORE_BATCH)]
    return torch.cat(nats).numpy()


@torch.inference_mode()
def nats_per_pixel(density: AutoregressiveDensity, images: Tensor) -> np.ndarray:
    """The mean of −log p(pixel given what precedes it) over images, (n,) float64 nats, by pixel."""
    total = torch.zeros(density.dim, dtype=torch.float64)
    for x in images.split(SCORE_BATCH):
        z = x.to(density.device, density.dtype)
        total += -F.logsigmoid((2 * z - 1) * density(z)).double().sum(0).cpu()
    return (total / len(images)).numpy()


def save_test(run: RunDir, **nats: np.ndarray) -> None:
    """Writes ``nll_test.npz``, in nats: ``nll`` of each test image (N,), its mean at each pixel, ``pixels`` (n,)."""
    write_whole(run.nll_test, content_of(lambda file: np.savez_compressed(file, allow_pickle=False, **nats)))


def statistics(nll: np.ndarray) -> dict[str, float | int]:
    """Mean and standard error in nats: a float64 sum over all images, divided once by their count."""
    count = len(nll)
    stderr = float(nll.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    return {"mean": float(nll.sum()) / count, "stderr": stderr, "count": count}


def model_name(cfg: DictConfig) -> str:
    """The file that the model's class lives in: chainrule.models.nade.NADE is ``nade``."""
    return str(cfg.model._target_).split(".")[-2]


def data_name(cfg: DictConfig) -> str:
    """The name of the data's class: chainrule.data.Static is ``static``."""
    return str(cfg.data._target_).split(".")[-1].lower()
