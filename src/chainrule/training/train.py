"""One run, from a configuration to its record."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from chainrule import CONF
from chainrule.data import Images
from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation.sampling import draw_samples, save_completed
from chainrule.evaluation.scoring import check_finite, nll_and_pixels, nll_per_image, scored, splits
from chainrule.files import remove_parts
from chainrule.mixture import OrderEnsemble
from chainrule.runs.directory import RunDir, failure_noted, lock, open_run
from chainrule.runs.fingerprint import (
    code_changed,
    code_sha256,
    create,
    data_name,
    earlier,
    fingerprint,
    model_name,
    sources,
    targets,
)  # fmt: skip
from chainrule.runs.load import checkpoint_sha256, class_named, in_orders, load_selected, read_checkpoint
from chainrule.runs.nll import save_nll
from chainrule.runs.provenance import provenance
from chainrule.runs.record import Record
from chainrule.runs.settings import check, is_complete, public_config, public_overrides
from chainrule.training.callbacks import EpochLines, ProgressBar, StopOnNonFinite
from chainrule.training.checkpoints import PREVIOUS, Progress, Savers, SealedFiles, progress, restore_metrics, resumable
from chainrule.training.ddp import Child, parent_of
from chainrule.training.module import DensityModule
from chainrule.training.wandb import Tracker, WandbCallback, conclude

log = logging.getLogger(__name__)

COMPLETED = 8  # test images in a run's completions.png
SLOWER = 1.3  # times; below, it may be noise
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}


@dataclass(frozen=True)
class Fitted:
    """A density that was trained and selected on the validation images; no test image has been looked at."""

    density: BinaryDensity
    data: Images
    valid: np.ndarray  # NLL of each validation image in nats, (N,) float64
    progress: Progress
    loggers: Sequence[Logger]

    @property
    def nll(self) -> float:
        """The mean NLL of the validation images in nats."""
        return float(self.valid.mean())


def compose_and_train(overrides: Sequence[str], run_dir: str | Path | None = None) -> Record:
    """:func:`train` with ``conf/train.yaml`` and overrides; without a ``run_dir``, where the command would train."""
    before = HydraConfig.instance().cfg
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        try:
            task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
            return train(task, run_dir or cfg.hydra.run.dir, overrides)
        finally:
            HydraConfig.instance().cfg = before


def train(cfg: DictConfig, run_dir: str | Path, overrides: Sequence[str] = ()) -> Record:
    """One run: fit, select on the validation images, score the test images once, write the record.

    An interrupted run in this directory is resumed; of a finished one, the record is returned at once.

    Args:
        cfg: the composed configuration of ``conf/train.yaml``.
        run_dir: where everything goes.
        overrides: of the command line, for the record.

    Raises:
        ValueError: the configuration cannot work, training diverged, or the directory holds another run.
        OSError: images cannot be found, or files not be written.
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: with code 143, the process was asked to end (SIGTERM).
    """
    run = RunDir(Path(run_dir))
    with lock(run.path):
        if record := earlier(run, cfg):
            return record
        with failure_noted(run):
            fitted = _fit(cfg, run)
            return _record(cfg, run, fitted, overrides)


def fit(cfg: DictConfig, run_dir: str | Path, callbacks: Sequence[Callback] = ()) -> Fitted:
    """Trains and selects, and leaves the test images alone: what a search needs. Leaves no record.

    Args:
        cfg: the composed configuration of ``conf/train.yaml``.
        run_dir: where everything goes; an interrupted run in it is resumed.
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
    data: Images = instantiate(cfg.data, _convert_="all")
    if not isinstance(data, Images):
        raise ValueError(f"data._target_={cfg.data.get('_target_')} makes no images")
    density: BinaryDensity = instantiate(cfg.model, shape=data.shape, _convert_="all")
    if not isinstance(density, BinaryDensity):
        raise ValueError(f"model._target_={cfg.model.get('_target_')} is no model")
    if cfg.get("orders") is not None:
        density = in_orders(density, cfg.orders)
    elif cfg.model.get("told") and not cfg.get("ckpt_path"):  # from the weights of a network in several orders it is
        log.warning("model.told=true says which of several orders it is, and there is one: did you mean orders=grid?")
    data.prepare_data()
    data.setup("fit")
    density.prepare(data.train)
    if cfg.get("ckpt_path"):
        _begin_from(density, open_run(cfg.ckpt_path))
    check_causal(density, data.train[:2])
    optimizer, scheduler = (instantiate(cfg[part], _convert_="all") for part in ("optimizer", "scheduler"))
    module = DensityModule(
        density, optimizer=optimizer, scheduler=scheduler, train_size=len(data.train), seed=cfg.seed
    )  # fmt: skip
    module.optimizer_and_scheduler(1)  # what torch does not take is told before there is a run directory
    trainer = _trainer(cfg, run, [*callbacks, Savers(run.checkpoints)])
    create(run, cfg)
    count = f"{density.parameter_count:,}"
    log.info("%s with %s parameters on %s; writing to %s", model_name(cfg), count, data.name, run.path)
    remove_parts(run.path)
    if checkpoint := resumable(run.checkpoints):
        log.info("resuming from %s", checkpoint)
    with _interruptible(trainer), parent_of(trainer):
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    if trainer.num_devices > 1:  # the processes that trained are gone, and with them what their loggers knew
        restore_metrics(trainer, run.checkpoints)
    if not run.best.is_file():  # max_epochs=0: what is there was written down, not trained
        with _interruptible(trainer):
            trainer.validate(module, datamodule=data, verbose=False)
        trainer.save_checkpoint(run.best)
    best = load_selected(run, trust=str(cfg.model._target_))
    log.info("scoring %s validation images with the selected weights", f"{len(data.valid):,}")
    return Fitted(best, data, nll_per_image(best, data.valid), progress(run.checkpoints), trainer.loggers)


def _begin_from(density: BinaryDensity, run: RunDir) -> None:
    """Gives the density the selected weights of another run; what they lack keeps the values that it has.

    A network in several orders takes those of a network in one, so that it need not learn what a stroke is again.
    """
    state, _ = read_checkpoint(run.best)
    network = density.density if isinstance(density, OrderEnsemble) else density
    state = {name.removeprefix("density."): value for name, value in state.items()}
    try:
        lacking, unknown = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"ckpt_path={run.path}: its weights do not fit this model: {error}") from error
    if unknown or len(lacking) == len(network.state_dict()):
        raise ValueError(
            f"ckpt_path={run.path}: its weights are those of another model: here there is no {', '.join(unknown)}"
        )
    if lacking:
        log.info("ckpt_path=%s has no %s: as initialized", run.path, ", ".join(lacking))


@torch.no_grad()
def check_causal(density: BinaryDensity, x: torch.Tensor) -> None:
    """Flips a few pixels of two images (2, n): only logits of later steps may change, whatever the weights.

    Raises:
        ValueError: a logit depends on its own pixel, or on a later one: what is trained is no likelihood.
    """
    if isinstance(density, OrderEnsemble):
        density = density.members[-1]
    if not isinstance(density, AutoregressiveDensity):
        return
    probe = copy.deepcopy(density).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in probe.parameters():  # zeros would hide what a weight sees
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = x.to(probe.dtype)
    before = probe(x)
    for t in sorted({0, density.dim // 2, density.dim - 1}):
        pixel, flipped = probe.order[t], x.clone()
        flipped[:, pixel] = 1 - flipped[:, pixel]
        known = probe.order[: t + 1]
        change = (probe(flipped) - before)[:, known].abs()
        if change.max() > 1e-4:
            step = int(change.max(0).values.argmax())
            raise ValueError(
                f"the model sees what it predicts: its logit at step {step} changes with the pixel at step {t}, so its "
                "NLL is no likelihood. conditionals(z): logit t may depend on z[:, :t] only"
            )


def _trainer(cfg: DictConfig, run: RunDir, callbacks: Sequence[Callback]) -> L.Trainer:
    chosen = [instantiate(callback, _convert_="all") for callback in cfg.callbacks.values()]
    for name, callback in zip(cfg.callbacks, chosen, strict=True):
        if not isinstance(callback, Callback):
            raise ValueError(f"callbacks.{name} is no callback of Lightning, but {callback!r:.60}")
        if (monitor := getattr(callback, "monitor", "val/nll")) not in ("val/nll", "train/nll"):
            raise ValueError(f"{type(callback).__name__} monitors {monitor!r}: there are val/nll and train/nll")
    if cfg.trainer.enable_progress_bar:
        chosen.append(ProgressBar(refresh_rate=25) if sys.stdout.isatty() else EpochLines())
    # W&B's in front: callbacks behind one that averages see raw weights.
    chosen = [WandbCallback(), *chosen, StopOnNonFinite(), *callbacks, Child()]
    class_named(str(cfg.trainer._target_), L.Trainer)
    accelerator = _accelerator(cfg.trainer.accelerator)
    if accelerator == "cpu" and str(cfg.trainer.get("precision")).startswith("bf16"):
        probe_bfloat16()
    profiler = cfg.trainer.get("profiler")
    rank_zero_only.rank = 0  # type: ignore[attr-defined] # whatever a cluster's environment says: this process is the first of its run
    try:
        trainer: L.Trainer = instantiate(cfg.trainer, _partial_=True, _convert_="all")(
            accelerator=accelerator,
            callbacks=chosen,
            plugins=[SealedFiles(), LightningEnvironment()],
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in chosen),
            logger=_loggers(cfg, run) or False,
            default_root_dir=run.path,
            **({"profiler": PROFILERS[profiler](run.path, "profile")} if profiler in PROFILERS else {}),
        )
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"trainer: {error}") from error
    return trainer


@contextmanager
def _interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Lightning ends a process that is asked to end with code 0, and one that is interrupted with code 1."""
    try:
        yield
        if trainer.received_sigterm:  # after the last step, where Lightning no longer looks
            raise SIGTERMException
    except SIGTERMException:
        raise SystemExit(143) from None
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def _record(cfg: DictConfig, run: RunDir, fitted: Fitted, overrides: Sequence[str]) -> Record:
    """Scores what was fitted, and writes everything that a finished run has, the record last."""
    best, data = fitted.density, fitted.data
    train, _, test = splits(data).values()
    log.info("scoring %s training and %s test images", f"{len(train):,}", f"{len(test):,}")
    scores, by_pixel = {"train": nll_per_image(best, train), "valid": fitted.valid}, {}
    if isinstance(best, AutoregressiveDensity):  # an ensemble has no order of its own
        scores["test"], by_pixel["pixels"] = nll_and_pixels(best, test)
    else:
        scores["test"] = nll_per_image(best, test)
    check_finite(scores)
    if isinstance(best, AutoregressiveDensity):
        save_completed(best, test[:COMPLETED], run.completions, seed=cfg.seed)
    save_nll(run.path, nll=scores["test"], **by_pixel)
    order, built, start = cfg.get("orders") or cfg.model.get("order"), targets(cfg), cfg.get("ckpt_path")
    if isinstance(best, OrderEnsemble):
        order = f"{len(best.orders)} orders"
    record = Record(
        model=model_name(cfg),
        kernel=fitted.progress.kernel,
        order=order if isinstance(order, str) else "given" if order else None,
        **scored(best, data, scores),
        seed=cfg.seed,
        complete=is_complete(cfg),
        best_epoch=fitted.progress.best_epoch,
        epochs=fitted.progress.epochs,
        seconds=fitted.progress.seconds,
        images_per_second=fitted.progress.images_per_second,
        sampling=draw_samples(best, run, cfg),
        fingerprint=fingerprint(cfg),
        code_sha256=code_sha256(built),
        code_changed=code_changed(run),
        checkpoint_sha256=checkpoint_sha256(run),
        initialized_from=checkpoint_sha256(open_run(start)) if start else None,
        **provenance(sources(built).values()),
        overrides=public_overrides(overrides),
        tags=list(cfg.get("tags") or ()),
        config=public_config(cfg),
    )
    for logger in fitted.loggers:
        if isinstance(logger, Tracker):
            conclude(
                logger, run, record, steps=fitted.progress.steps, density=best, images=data.test, nll=scores["test"],
                **by_pixel,
            )  # fmt: skip
        else:
            step = None if isinstance(logger, CSVLogger) else fitted.progress.steps
            logger.log_metrics({"test/nll": record.test.mean, "test/nll_stderr": record.test.stderr}, step)
        logger.save()
    record.write(run.path)
    (run.checkpoints / PREVIOUS).unlink(missing_ok=True)  # nobody resumes from there any more
    return record


@torch.no_grad()
def probe_bfloat16() -> None:
    """Warns where convolutions in bfloat16 are slower than in float32, perhaps by far: no processor's name says it."""
    times = {}
    for kind in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(8, 32, 28, 28, dtype=kind), torch.randn(32, 32, 3, 3, dtype=kind)
        torch.conv2d(x, weight)
        clock = [time.perf_counter()]
        for _ in range(5):
            torch.conv2d(x, weight)
            clock.append(time.perf_counter())
        times[kind] = min(later - earlier for earlier, later in pairwise(clock))  # a busy machine only adds to it
    if (slower := times[torch.bfloat16] / times[torch.float32]) > SLOWER:
        log.warning("bfloat16 is %.1f times slower than float32 on this CPU: use trainer.precision=32-true", slower)


def _accelerator(name: str) -> str:
    # Lightning's "auto" would take Apple's GPU, which has no float64 and none of our kernels.
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(f"trainer.accelerator={name}, but no CUDA device available: use trainer.accelerator=cpu")
    return name


def _loggers(cfg: DictConfig, run: RunDir) -> list[Logger]:
    makers = [instantiate(maker, _convert_="all") for maker in cfg.logger.values()]
    about = {"model": model_name(cfg), "data": data_name(cfg), "seed": cfg.seed, "config": public_config(cfg)}
    return [make(run_dir=run.path, **about) for make in makers]
