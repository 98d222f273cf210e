"""Sweeps that can be stopped and started again: which jobs there are, where each lives, and what became of it.

Hydra runs the jobs. What it does not tell is read from the folders of the jobs: its callbacks hear nothing of a job
that was killed, nothing after Ctrl-C, and nothing of the end of a sweep in which a job failed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from chainrule.files import write_whole
from chainrule.runs import fingerprint as runs
from chainrule.runs.directory import RunDir, in_use, lock

log = logging.getLogger(__name__)

FILE = "sweep.json"
CONDUCTOR = "CHAINRULE_SWEEP"  # the process that conducts a sweep; jobs may run in it or in others
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit codes, as a shell has them

# What a choice of hydra/launcher, or a verb, needs besides chainrule itself: module → extra.
EXTRAS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "ray_cluster": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "search": ("optuna", "optuna"),
    "dashboard": ("wandb_workspaces", "dashboard"),
}


def require(choice: str) -> None:
    """Looks whether what a choice needs is installed.

    Raises:
        ValueError: it is not.
    """
    module, extra = EXTRAS.get(choice, ("chainrule", ""))
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # not even the package that it would be in
        found = None
    if found is None:
        raise ValueError(f"{choice} needs packages that are not installed: pip install 'chainrule[{extra}]'")


# ---- before: which jobs, and where ------------------------------------------------------------------


class State(StrEnum):
    """What became of a job."""

    FINISHED = "finished"
    FAILED = "failed"
    RUNNING = "running elsewhere"
    INTERRUPTED = "interrupted"
    WAITING = "never started"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        folder: its run directory.
        words: the overrides that make it this job.
        fingerprint: see :func:`chainrule.runs.fingerprint`.
    """

    folder: str
    words: str
    fingerprint: str


@dataclass(frozen=True)
class Sweep:
    """Jobs, in the order in which Hydra numbers them, below one folder."""

    folder: Path
    jobs: tuple[Job, ...]

    @property
    def key(self) -> str:
        """Same jobs, same code, same data: same key."""
        return hashlib.sha256("\n".join(job.fingerprint for job in self.jobs).encode()).hexdigest()

    def _stored_key(self) -> str | None:
        """The key of the sweep that the folder holds; None: it holds none.

        Raises:
            ValueError: the file that says so is damaged.
        """
        file = self.folder / FILE
        try:
            return str(json.loads(file.read_text())["key"]) if file.is_file() else None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{file} is damaged: remove it, or give this sweep another hydra.sweep.dir") from None

    def write(self) -> None:
        content = {"schema": 1, "key": self.key, "jobs": [asdict(job) for job in self.jobs]}
        write_whole(self.folder / FILE, (json.dumps(content, indent=1) + "\n").encode())

    def state(self, job: Job) -> State:
        run = RunDir(self.folder / job.folder)
        if run.record.is_file():
            return State.FINISHED
        if run.path.is_dir() and in_use(run.path):
            return State.RUNNING
        if run.failure.is_file():
            return State.FAILED
        return State.INTERRUPTED if run.config.is_file() else State.WAITING

    def fits(self) -> bool:
        """Whether nothing else is in the folders of its jobs."""
        stored = {job: self.folder / job.folder / "config.yaml" for job in self.jobs}
        return self._stored_key() in (None, self.key) and all(
            runs.stored_fingerprint(config) == job.fingerprint for job, config in stored.items() if config.is_file()
        )

    def begun(self) -> bool:
        """Whether this very sweep is in the folder already."""
        return self._stored_key() == self.key and self.fits()

    def outcome(self, job: Job, state: State) -> tuple[str, str]:
        """A job's test NLL, if it has one, and what it died of."""
        run = RunDir(self.folder / job.folder)
        if state is State.FINISHED:
            try:
                return f"{json.loads(run.record.read_text())['nll']['test']['mean']:.3f}", ""
            except (ValueError, KeyError, TypeError):
                return "", f"{run.record.name} is damaged: remove it, and the same command makes it again"
        return "", _reason(run) if state is State.FAILED else ""


@contextmanager
def arranged(words: Sequence[str], conf: Path) -> Iterator[tuple[list[str], Sweep | None]]:
    """Sends a run or a sweep that was interrupted on in its old folder, and a new sweep to one of its own.

    A sweep's folder is locked while this lasts.

    Args:
        words: of the command line, as Hydra reads them.
        conf: the folder of configurations.

    Yields:
        The words, with the folder where there is one to name; and the sweep, if it is one.

    Raises:
        ValueError: the folder that the user names holds another sweep, or the same one is running there; a launcher's
            packages are missing; or the configurations themselves are to be others.
    """
    flags = get_args_parser().parse_args(list(words))
    if flags.config_path or flags.config_name:  # the jobs of a sweep are found in ours
        raise ValueError(
            "--config-path and --config-name replace chainrule's own configuration: leave them out, and add "
            "configurations of yours with --config-dir=FOLDER (its experiment/mine.yaml is then experiment=mine)"
        )
    for word in flags.overrides:
        if word.startswith("hydra/launcher="):  # without its packages Hydra does not even know the choice
            require(word.partition("=")[2])
    asks = (flags.help, flags.hydra_help, flags.cfg, flags.info, flags.shell_completion)
    with ExitStack() as held:
        yield (list(words), None) if any(asks) else _found(list(words), flags, conf, held)


def _found(words: list[str], flags: Namespace, conf: Path, held: ExitStack) -> tuple[list[str], Sweep | None]:
    more = [f"hydra.searchpath=[file://{Path(flags.config_dir).absolute()}]"] if flags.config_dir else []
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            key, folder, sweep = _place([*more, *flags.overrides], flags.multirun, held)
        except (HydraException, OmegaConfBaseException):
            return words, None  # Hydra finds the same mistake again, and says it best
    return [*words, *([_word(key, folder)] if folder else [])], sweep


def _place(overrides: list[str], multirun: bool, held: ExitStack) -> tuple[str, Path | None, Sweep | None]:
    """The key that says where everything goes, the folder where it has to be told, and the sweep."""
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    base = _compose([str(o.input_line) for o in parsed if not o.is_sweep_override()])
    if not (multirun or base.hydra.mode == RunMode.MULTIRUN):
        new = base.resume == "never" or _given("hydra.run.dir", parsed)
        old = None if new else runs.find_unfinished(base.paths.runs, runs.fingerprint(_without_hydra(base)))
        return "hydra.run.dir", old, None
    if "BasicSweeper" not in base.hydra.sweeper._target_:  # what others try next depends on what came out before
        return "hydra.sweep.dir", None, None
    sweep = _sweep(parsed, base, held)
    return "hydra.sweep.dir", sweep.folder, sweep


def _sweep(parsed: Sequence[Override], base: DictConfig, held: ExitStack) -> Sweep:
    """The sweep in the folder that the user names; else the newest of the same jobs; else a new one; locked."""
    new, auto = Sweep(Path(base.hydra.sweep.dir), _jobs(parsed, base)), base.resume != "never"
    if not new.fits() or (new.begun() and not auto):
        raise ValueError(
            f"{new.folder} holds other runs, with other settings or of another version of the program (or "
            "resume=never): give this sweep another hydra.sweep.dir"
        )
    old = _earlier(Path(base.paths.runs), new) if auto and not _given("hydra.sweep.dir", parsed) else []
    sweep = next((sweep for sweep in old if _locked(sweep, held)), new)
    if sweep is new and not _locked(new, held):
        raise ValueError(f"{new.folder} is in use: this very sweep is running there. Wait until it ends")
    sweep.write()
    return sweep


def _locked(sweep: Sweep, held: ExitStack) -> bool:
    with suppress(ValueError):
        held.enter_context(lock(sweep.folder))
        return True
    return False


def _earlier(parent: Path, new: Sweep) -> list[Sweep]:
    """Sweeps of the same jobs below ``parent``, the newest first."""
    files = sorted(parent.expanduser().glob(f"*/{FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [old for old in (Sweep(file.parent, new.jobs) for file in files) if _is_begun(old)]


def _is_begun(neighbour: Sweep) -> bool:
    """Whether this very sweep is there; what is damaged in other folders is not this sweep's affair."""
    try:
        return neighbour.begun()
    except ValueError as error:
        log.warning("%s", error)
        return False


def _jobs(parsed: Sequence[Override], base: DictConfig) -> tuple[Job, ...]:
    """The jobs that Hydra's sweeper will make of the command line and of ``hydra.sweeper.params``."""
    parameters = [f"{key}={value}" for key, value in (base.hydra.sweeper.params or {}).items()]
    own = [o for o in parsed if not o.key_or_group.startswith(("hydra.", "hydra/"))]
    hydra = [str(o.input_line) for o in parsed if o not in own]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    (batch,) = BasicSweeper.split_arguments([*parser.parse_overrides(parameters), *own], None)
    swept = {o.get_key_element() for o in own if o.is_sweep_override()} | set(base.hydra.sweeper.params or {})
    return tuple(_job([*hydra, *words], number, swept) for number, words in enumerate(batch))


def _job(words: list[str], number: int, swept: Container[str]) -> Job:
    cfg = _compose([*words, f"hydra.job.num={number}"])
    said = " ".join(word for word in words if word.partition("=")[0] in swept)
    return Job(str(cfg.hydra.sweep.subdir), said, runs.fingerprint(_without_hydra(cfg)))


def _without_hydra(cfg: DictConfig) -> DictConfig:
    """The configuration as a job sees it."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _compose(words: list[str]) -> DictConfig:
    cfg = compose("train", overrides=words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # what ${hydra:…} looks things up in
    return cfg


def _given(key: str, parsed: Sequence[Override]) -> bool:
    return any(override.key_or_group == key for override in parsed)


def _word(key: str, path: Path) -> str:
    return f"{key}='" + str(path).replace("'", "\\'") + "'"


# ---- meanwhile: one job, and the end of all -----------------------------------------------------------


@contextmanager
def contained() -> Iterator[None]:
    """What happens to one job of a sweep stays its own affair: its error ends here, and stands in its folder.

    Launchers disagree about what a job may do to its siblings: a ``SystemExit`` ends the whole of Hydra's own sweep,
    and under joblib takes the neighbours down. Outside a sweep, errors go on their way.
    """
    try:
        yield
    except BaseException as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN or _stops_everything(error):
            raise
        run = RunDir(Path(HydraConfig.get().runtime.output_dir))
        if isinstance(error, SystemExit) and error.code not in (INTERRUPTED, TERMINATED) and not _by_launcher(error):
            write_whole(run.failure, f"sys.exit({error.code!r}) was called\n".encode())
        log.error("%s: %s", run.path, _reason(run) or f"{type(error).__name__} {error}")


def _stops_everything(error: BaseException) -> bool:
    """Ctrl-C; and SIGTERM, when the job runs in the process of the sweep itself."""
    own = os.environ.get(CONDUCTOR) == str(os.getpid())
    return isinstance(error, KeyboardInterrupt) or (own and _code(error) in (INTERRUPTED, TERMINATED))


def _by_launcher(error: SystemExit) -> bool:
    """Whether it is the way in which a worker is told to end: Ray's raises it wherever the job happens to be."""
    origin = list(traceback.walk_tb(error.__traceback__))[-1][0]
    return str(origin.f_globals.get("__name__")).startswith("ray.")


def _code(error: BaseException | None) -> int | None:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else None


def _reason(run: RunDir) -> str:
    """The first line of what a job died of."""
    return run.failure.read_text(errors="replace").strip().partition("\n")[0] if run.failure.is_file() else ""


def finish_wandb(*, failed: bool) -> None:
    """Closes the W&B run of a job; the next job in this process would otherwise go on in it."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=int(failed))


def conduct(sweep: Sweep, launch: Callable[[], None]) -> int:
    """Runs a sweep to its end, whatever that is.

    Returns:
        The exit code: 0 when all jobs finished, 130 after Ctrl-C, 143 after SIGTERM, else 1.
    """
    code, os.environ[CONDUCTOR] = None, str(os.getpid())
    try:
        with stoppable():
            launch()
    except (KeyboardInterrupt, SystemExit) as stop:
        code = _code(stop)
    except Exception as error:  # of the launcher: those of jobs end in contained()
        nothing = all(sweep.state(job) is State.WAITING for job in sweep.jobs)  # then the fault is in the launcher
        log.error("the launcher stopped: %s", str(error).partition("\n")[0] or type(error).__name__, exc_info=nothing)
    finally:
        if "ray" in sys.modules:  # its workers would go on talking
            sys.modules["ray"].shutdown()
    if code in (INTERRUPTED, TERMINATED):
        return code
    return int(any(sweep.state(job) is not State.FINISHED for job in sweep.jobs))


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM as an exception, SystemExit(143), also where Lightning is not there to catch it."""

    def stop(number: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGTERM) is stop:  # in a training Lightning's own stands before: it knows when
            raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- afterwards: how it ended -------------------------------------------------------------------------


def summary(sweep: Sweep) -> Group:
    """A row for each job: what became of it, its NLL, and why it failed."""
    states = [sweep.state(job) for job in sweep.jobs]
    counts = [f"{states.count(state)} {state}" for state in State if state in states]
    rows = [(job.folder, job.words, state, *sweep.outcome(job, state))
            for job, state in zip(sweep.jobs, states, strict=True)]  # fmt: skip
    shown = [column for column, texts in enumerate(zip(*rows, strict=True)) if any(texts)]
    table = Table()
    for column in shown:
        heading = ("job", "", "state", "test NLL", "why")[column]
        table.add_column(heading, no_wrap=heading != "why", justify="right" if heading == "test NLL" else "left")
    for row in rows:
        table.add_row(*(escape(row[column]) for column in shown))
    # A cluster's jobs outlive the command that sent them.
    advice = ["What runs elsewhere goes on: wait for it, or stop it there, before you give the command again"]
    return Group(
        f"{escape(str(sweep.folder))}: {', '.join(counts)}", table, *(advice if State.RUNNING in states else [])
    )


class Forgetful(Callback):
    """Lets go of what Hydra keeps and nobody reads."""

    def on_job_start(self, config: DictConfig, **kwargs: object) -> None:
        """The command line of a sweep, word by word: a secret may be in it."""
        (Path(config.hydra.sweep.dir) / "multirun.yaml").unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        """A finished job's configurations, which would pile up until the end of the sweep."""
        job_return.cfg = job_return.hydra_cfg = None
