"""From a configuration to a record: the only place that instantiates whole configurations."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from chainrule.data import Images
from chainrule.density import AutoregressiveDensity
from chainrule.evaluation.sampling import draw_samples, save_completed
from chainrule.evaluation.scoring import check_finite, nats_per_pixel, nll_per_image, save_test, scored, splits
from chainrule.files import remove_parts
from chainrule.runs.directory import RunDir, failure_noted, lock
from chainrule.runs.fingerprint import create, earlier, fingerprint
from chainrule.runs.load import checkpoint_sha256, load_selected
from chainrule.runs.provenance import provenance
from chainrule.runs.record import Record
from chainrule.runs.settings import check, data_name, model_name, public_config, public_words
from chainrule.training.callbacks import EpochLines, ProgressBar, StopOnNonFinite
from chainrule.training.checkpoints import PREVIOUS, Progress, Savers, SealedFiles, progress, restore_metrics, resumable
from chainrule.training.ddp import Child, parent_of
from chainrule.training.module import DensityModule
from chainrule.training.shown import Dashboard, conclude
from chainrule.training.tracker import Tracker

log = logging.getLogger(__name__)

COMPLETED = 8  # test images in a run's completions.png
SIGTERM_CODE = 143

# ---- training ---------------------------------------------------------------------------------------


def train(cfg: DictConfig, run_dir: str | Path, overrides: Sequence[str] = ()) -> Record:
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
    with lock(run.path):
        if record := earlier(run, cfg):
            log.info("%s is finished already", run.path)
            return record
        with failure_noted(run):
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
    with lock(run.path):
        earlier(run, cfg)
        return _fit(cfg, run, callbacks)


def _fit(cfg: DictConfig, run: RunDir, callbacks: Sequence[Callback] = ()) -> Fitted:
    check(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data, density = _build(cfg)
    create(run, cfg)
    log.info(
        "%s with %s parameters on %s; everything goes to %s",
        model_name(cfg), f"{density.parameter_count:,}", data.name, run.path,
    )  # fmt: skip
    module = _module(cfg, density, data)
    trainer = _trainer(cfg, run, [*callbacks, Savers(run.checkpoints)])
    _run(trainer, module, data, run)
    best = load_selected(run)
    return Fitted(best, data, nll_per_image(best, data.valid), progress(run.checkpoints), trainer.loggers)


def _build(cfg: DictConfig) -> tuple[Images, AutoregressiveDensity]:
    """The images, in memory, and the density as it is before the first step."""
    data: Images = instantiate(cfg.data, _convert_="all")
    density: AutoregressiveDensity = instantiate(cfg.model, shape=data.shape, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    density.prepare(data.train)
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
    chosen = [*_callbacks(cfg), StopOnNonFinite(), *callbacks, Child()]
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


def _record(cfg: DictConfig, run: RunDir, fitted: Fitted, overrides: Sequence[str]) -> Record:
    """Scores what was fitted, and writes everything that a finished run has, the record last."""
    best, data = fitted.density, fitted.data
    train, _, test = splits(data).values()
    scores = {"train": nll_per_image(best, train), "valid": fitted.valid, "test": nll_per_image(best, test)}
    check_finite(scores)
    pixels = nats_per_pixel(best, test)
    save_test(run, nll=scores["test"], pixels=pixels)
    save_completed(best, test[:COMPLETED], run.completions, seed=cfg.seed)
    record = Record(
        model=model_name(cfg),
        kernel=fitted.progress.kernel,
        order=cfg.model.order if isinstance(cfg.model.order, str) else "given",
        **scored(best, data, scores),
        seed=cfg.seed,
        best_epoch=fitted.progress.best_epoch,
        epochs=fitted.progress.epochs,
        seconds=fitted.progress.seconds,
        images_per_second=fitted.progress.images_per_second,
        sampling=draw_samples(best, run, cfg),
        fingerprint=fingerprint(cfg),
        checkpoint_sha256=checkpoint_sha256(run),
        **provenance(),
        overrides=public_words(overrides),
        config=public_config(cfg),
    )
    _finish(fitted, run, record, nll=scores["test"], pixels=pixels)
    record.write(run.path)
    (run.checkpoints / PREVIOUS).unlink(missing_ok=True)  # nobody goes on from there any more
    return record


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
    return [make(run_dir=run.path, config=public_config(cfg), **about) for make in makers]


def _finish(fitted: Fitted, run: RunDir, record: Record, *, nll: np.ndarray, pixels: np.ndarray) -> None:
    """Tells the loggers how it ended."""
    for logger in fitted.loggers:
        if isinstance(logger, Tracker):
            conclude(
                logger, run, record, steps=fitted.progress.steps, density=fitted.density, images=fitted.data.test,
                nll=nll, pixels=pixels,
            )  # fmt: skip
        else:
            logger.log_metrics({"test/nll": record.test.mean, "test/nll_stderr": record.test.stderr}, step=None)
        logger.save()
