"""``chainrule VERB [key=value …]``: hydra entry points, no logic."""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chainrule.files import FULL

if TYPE_CHECKING:
    from rich.console import RenderableType

    from chainrule.density import AutoregressiveDensity

HERE = Path(__file__).resolve().parent
# The wheel carries conf/ inside the package; a checkout uses the one that its user edits.
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parents[1] / "conf"

# What users get wrong is explained in one message; anything else is a defect of ours and keeps its traceback.
MISTAKES = (CompactHydraException, OmegaConfBaseException, ValueError, OSError)

# Exit codes of a process that was asked to end, as a shell has them.
STOPPED = {130: "interrupted (Ctrl-C)", 143: "stopped (SIGTERM)"}

PATH_KEYS = (
    "run", "runs", "out", "file", "bench",
    "paths.data_dir", "paths.cache_dir", "paths.runs", "hydra.run.dir", "hydra.sweep.dir",
)  # fmt: skip

USAGE = """chainrule: exact-likelihood autoregressive models of binary images

  chainrule train [key=value …]       train, select on validation, score the test set once
  chainrule evaluate run=DIR          the NLL of a finished run, recomputed
  chainrule sample run=DIR n=64       draw images
  chainrule complete run=DIR          keep half of some test images, draw the rest
  chainrule mix runs=DIR,DIR          the equal-weight mixture of finished runs
  chainrule certify run=DIR           checks that a run's number is a normalized likelihood; certificate.json
  chainrule check model=foo           checks that a model is a normalized, causal density
  chainrule compress run=DIR file=F   the test images, or your own, in one file without loss
  chainrule decompress run=DIR file=F the images in it
  chainrule tabulate runs=DIR         a table of all finished runs below DIR
  chainrule report runs=DIR           all about them as one HTML file: table, curves, samples, configurations
  chainrule compare runs=DIR,DIR      paired differences of test NLL, image by image
  chainrule search hparams_search=nade
                                      good settings, found on the validation images
  chainrule bench                     what training and sampling cost on this machine
  chainrule dashboard                 a W&B workspace for all runs of a project
  chainrule claims runs=DIR           what the text says of the models, measured on finished runs

`chainrule VERB --help` says which keys a verb knows; `chainrule train -m model=fvsbn,nade seed=0,1,2`
runs a sweep."""


def train(cfg: DictConfig) -> float:
    from chainrule.reporting import tables  # noqa: PLC0415
    from chainrule.training import sweep as sweeps  # noqa: PLC0415
    from chainrule.training import train as experiment  # noqa: PLC0415

    job, record = HydraConfig.get(), None
    try:
        with sweeps.contained():
            record = experiment.train(cfg, job.runtime.output_dir, list(job.overrides.task))
    finally:
        sweeps.finish_wandb(failed=record is None)
    if record is None:
        return math.nan
    _show(tables.summary(tables.read_record(record.path)))
    return record.nll["valid"].mean


def evaluate(cfg: DictConfig) -> None:
    from chainrule.evaluation import scoring  # noqa: PLC0415

    result = scoring.evaluate(cfg)
    _show(
        f"{result['data']} {result['split']}: {result['mean']:.3f} ± {result['stderr']:.3f} nats "
        f"({result['count']:,} images, sha256 {result['sha256'][:12]}…)"
    )


def sample(cfg: DictConfig) -> None:
    from chainrule.evaluation import sampling  # noqa: PLC0415

    _show(f"written: {sampling.sample(cfg)}")


def complete(cfg: DictConfig) -> None:
    from chainrule.evaluation import sampling  # noqa: PLC0415

    _show(f"written: {sampling.complete(cfg)}")


def mix(cfg: DictConfig) -> None:
    from chainrule.evaluation import mix as mixing  # noqa: PLC0415
    from chainrule.reporting import tables  # noqa: PLC0415

    path, _ = mixing.mix(cfg, list(HydraConfig.get().overrides.task))
    _show(tables.summary(tables.read_record(path)))
    _show(f"written: {path}")


def certify(cfg: DictConfig) -> None:
    from chainrule.evaluation import certify as proving  # noqa: PLC0415

    if not proving.certify(cfg, _show):
        sys.exit(1)


def check(cfg: DictConfig) -> None:
    from chainrule import testing  # noqa: PLC0415

    model: type[AutoregressiveDensity] = hydra.utils.get_class(cfg.model._target_)
    given = [override.partition("=")[0].strip("+~") for override in HydraConfig.get().overrides.task]
    small = {key: value for key, value in model.small.items() if key in cfg.model and f"model.{key}" not in given}
    shape = {"shape": model.small["shape"]} if "shape" in model.small else {}
    try:
        done = testing.check(partial(hydra.utils.instantiate, cfg.model, _convert_="all"), **small, **shape)
    except AssertionError as error:
        raise ValueError(str(error)) from error
    _show(f"{model.__name__}: {len(done)} checks passed")


def compress(cfg: DictConfig) -> None:
    from chainrule.evaluation import coding  # noqa: PLC0415

    _show(coding.compress(cfg))


def decompress(cfg: DictConfig) -> None:
    from chainrule.evaluation import coding  # noqa: PLC0415

    path, count = coding.decompress(cfg)
    _show(f"written: {path} ({count:,} images)")


def tabulate(cfg: DictConfig) -> None:
    from chainrule.reporting import tables  # noqa: PLC0415

    print(tables.tabulate(_runs(cfg), format=cfg.format, published=cfg.published, invalid=cfg.invalid))


def report(cfg: DictConfig) -> None:
    from chainrule.reporting.report import write_report  # noqa: PLC0415

    _show(f"written: {write_report(_runs(cfg), out=cfg.out, bench=cfg.bench, published=cfg.published)}")


def _runs(cfg: DictConfig) -> str | list[str]:
    if OmegaConf.is_missing(cfg, "runs"):
        raise ValueError("say where the runs are: runs=DIR, or runs=DIR,DIR")
    return cfg.runs if isinstance(cfg.runs, str) else list(cfg.runs)


def compare(cfg: DictConfig) -> None:
    from chainrule.evaluation import compare as comparing  # noqa: PLC0415

    differences = comparing.compare(_runs(cfg), resamples=cfg.resamples, level=cfg.level, seed=cfg.seed)
    print(comparing.table(differences, format=cfg.format))


def search(cfg: DictConfig) -> None:
    from chainrule.training import sweep as sweeps  # noqa: PLC0415

    sweeps.require("search")
    from chainrule.training import search as searching  # noqa: PLC0415

    job = HydraConfig.get()
    words = searching.train_words(job.runtime.choices, job.overrides.task)
    found = searching.Search(cfg, Path(job.runtime.output_dir), words)
    found.run()
    _show(searching.summary(found))
    for best in found.ranking()[:1]:
        _show(f"the best: {shlex.join(['chainrule', 'train', *found.command(best)])}")
        _show(f"as an experiment: {searching.write_recipe(found, best)}")


def bench(cfg: DictConfig) -> None:
    from chainrule.bench import run, table  # noqa: PLC0415

    job = HydraConfig.get()
    print(table.render(run.bench(cfg, job.runtime.output_dir, list(job.overrides.task))))


def claims(cfg: DictConfig) -> None:
    from chainrule.bench import claims as study  # noqa: PLC0415

    _runs(cfg)
    print(study.claims(cfg))


def dashboard(cfg: DictConfig) -> None:
    from chainrule.training import sweep as sweeps  # noqa: PLC0415

    sweeps.require("dashboard")
    from chainrule.reporting import workspace  # noqa: PLC0415

    _show(f"workspace: {workspace.dashboard(cfg)}")


VERBS: dict[str, Callable[[DictConfig], float | None]] = {
    verb.__name__: verb
    for verb in (
        train, evaluate, sample, complete, mix, certify, check, compress, decompress,
        tabulate, report, compare, search, bench, claims, dashboard,
    )
}  # fmt: skip


def main() -> None:
    """The ``chainrule`` command."""
    verb, *words = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(USAGE)
        return
    if verb not in VERBS:
        sys.exit(f"chainrule: no command {verb!r}; there are {', '.join(VERBS)}. See chainrule --help")
    paths = (*PATH_KEYS, "images") if verb == "compress" else PATH_KEYS  # to bench it is a number
    # OpenMP's threads wait for the next loop by spinning. On cores that others use as well, a long spin keeps
    # the thread that everybody waits for off its core, and a step takes ten times as long; a short one costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    logging.raiseExceptions = False  # a full disk is reported once, and not by every line of the log
    traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands every error on: they are reported here
    try:
        words = [_quoted(word, paths) for word in words]
        if verb == "train":
            _train(words)
        else:
            _launch(verb, words)
    except MISTAKES as error:
        if traceback:
            raise
        sys.exit(f"chainrule {verb}: {_message(error)}")
    except (KeyboardInterrupt, SystemExit) as stop:
        code = 130 if isinstance(stop, KeyboardInterrupt) else stop.code
        if code in STOPPED:
            print(f"chainrule {verb}: {STOPPED[code]}; the same command again goes on from there", file=sys.stderr)
        sys.exit(code)


def _train(words: list[str]) -> None:
    from chainrule.training import sweep as sweeps  # noqa: PLC0415

    with sweeps.arranged(words, CONF) as (arranged, sweep):
        if sweep is None:
            with sweeps.stoppable():
                _launch("train", arranged)
        else:
            code = sweeps.conduct(sweep, partial(_launch, "train", arranged))
            _show(sweeps.summary(sweep))
            if code:
                sys.exit(code)


def _launch(verb: str, words: list[str]) -> None:
    sys.argv = [sys.argv[0], *words]
    mistakes: list[Exception] = []
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=verb)(_keeping(mistakes, VERBS[verb]))()
    except (OSError, ValueError) as error:
        raise _of_folder(error) from error
    if mistakes:
        raise mistakes[0]


def _of_folder(error: Exception) -> Exception:
    """The same error; one of making the folder or its log file, which Hydra does, says what to do."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError) or cause.filename is None:
        return error
    what = f"{cause.strerror}. Results cannot be written there: choose another folder, as in paths.runs=FOLDER"
    return OSError(cause.errno, what, cause.filename)


def _keeping(mistakes: list[Exception], task: Callable[[DictConfig], float | None]) -> TaskFunction:
    """The task; a mistake does not pass through Hydra, which would print a line of its own before our message."""

    @wraps(task)
    def run(cfg: DictConfig) -> float | None:
        try:
            return task(cfg)
        except MISTAKES as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            mistakes.append(error)
            return None

    return run


def _message(error: Exception) -> str:
    """What went wrong, in the words of whoever found it first."""
    if isinstance(error, OSError) and error.errno in FULL and error.strerror == os.strerror(error.errno):  # no cure yet
        return f"{error}. Make room, or write to another folder"
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, (ValueError, OSError)):
        return str(error.__cause__)
    if isinstance(error.__cause__, OmegaConfBaseException):
        return f"{error}\n{error.__cause__}"
    if "Config group override must be" in str(error):
        return f"{error}. A group that can be switched off has the choice none: logger=none"
    return str(error)


def _quoted(word: str, paths: Sequence[str]) -> str:
    """Paths as people type them: quoted for Hydra's grammar, so that spaces, = and commas are only letters.

    A ~ is the home folder: shells leave it as it is after a =, and Hydra makes a folder of that name.

    Raises:
        ValueError: the home folder of somebody who is not known here.
    """
    key, equals, value = word.partition("=")
    if not equals or key not in paths or value[:1] in ("'", '"', "["):
        return word
    parts = [os.path.expanduser(part) for part in (value.split(",") if key == "runs" else [value])]  # noqa: PTH111
    if unknown := [part for part in parts if part.startswith("~")]:
        raise ValueError(f"{key}={unknown[0]}: there is no such user here; give the whole path")
    quoted = ["'" + part.replace("'", "\\'") + "'" for part in parts]
    return f"{key}=[{','.join(quoted)}]" if key == "runs" else f"{key}={quoted[0]}"


def _show(what: RenderableType) -> None:
    from rich.console import Console  # noqa: PLC0415

    text = isinstance(what, str)  # as it is: brackets are Hydra's, not Rich's
    Console(soft_wrap=text).print(what, markup=not text)
