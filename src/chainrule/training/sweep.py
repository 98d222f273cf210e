"""Sweeps: a job's failure stays its own, and the end says what became of every job.

Hydra runs the jobs; where they are and what became of them is read from their run directories, since its callbacks hear
nothing of a job that was killed, nor of the end of a sweep in which a job failed. Importing this module, which workers
do for the callback, makes ``${run_name:}`` known to them.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from threading import Thread
from typing import ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from chainrule.files import write_whole
from chainrule.runs.directory import RunDir, discard, in_use, is_mistake, message
from chainrule.runs.fingerprint import fingerprint, stored_fingerprint
from chainrule.runs.record import Record

log = logging.getLogger(__name__)

PARENT = "CHAINRULE_SWEEP"  # the process of the sweep itself; jobs may run in it or in others
STOPS = (130, 143)  # exit codes after SIGINT and SIGTERM, as a shell has them
UNNAMED = "hydra.job.config.override_dirname.exclude_keys"  # overrides that need not be in a job's name
WATCH = 1.0  # seconds between two looks at jobs that run elsewhere
STATES = ("finished", "failed", "running elsewhere", "unfinished", "never started")

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
    """Raises a ValueError if a package that a choice needs is not installed."""
    module, extra = EXTRAS.get(choice, ("chainrule", ""))
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # not even the package that it would be in
        found = None
    if found is None:
        raise ValueError(f"{choice} needs packages that are not installed: pip install 'chainrule[{extra}]'")


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its run directory, its fingerprint, and the overrides that make it this job."""

    run: RunDir
    fingerprint: str
    overrides: str

    @property
    def outcome(self) -> tuple[str, str, str]:
        """What became of it, its test NLL if it has one, and why it failed."""
        run = self.run
        if in_use(run.path):
            return "running elsewhere", "", ""
        if run.config.is_file() and stored_fingerprint(run) != self.fingerprint:
            return "failed", "", f"{run.path} holds another run"
        if run.status != "finished":
            return run.status, "", run.reason
        try:
            return "finished", f"{Record.read(run.path).test.mean:.3f}", ""
        except ValueError as error:
            return "failed", "", f"{error}: remove the file, and the same command makes it again"


class Sweep(Callback):
    """Notes the jobs of a sweep before it starts, and lets go of what Hydra keeps and nobody reads."""

    jobs: ClassVar[list[Job] | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Notes which jobs there are. What cannot be composed is left for Hydra to say."""
        os.environ[PARENT] = str(os.getpid())
        Sweep.jobs = None
        if not config.hydra.sweeper._target_.endswith("BasicSweeper"):  # others choose as they go
            return
        loader = GlobalHydra.instance().config_loader()
        given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        values: dict[str, list[str]] = {}
        for override in OverridesParser.create(loader).parse_overrides([*given, *config.hydra.overrides.task]):
            swept = override.is_sweep_override()
            every = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
            values[override.get_key_element()] = list(every)
        Sweep.jobs = []
        if not all(values.values()):  # as of seed=range(0)
            return
        # Written back, so that Hydra's sweeper runs these very jobs: a shuffle would come out otherwise next time.
        with read_write(config), open_dict(config):
            config.hydra.sweeper.params = None
            config.hydra.overrides.task = [f"{key}={','.join(every)}" for key, every in values.items()]
            constant = ",".join(f"'{key.lstrip('+~')}'" for key, every in values.items() if len(every) == 1)
            config.hydra.overrides.hydra.append(f"{UNNAMED}=[{constant}]")
        jobs = []
        for number, chosen in enumerate(product(*values.values())):
            overrides = [f"{key}={value}" for key, value in zip(values, chosen, strict=True)]
            cfg = loader.load_sweep_config(config, overrides)
            with open_dict(cfg):
                cfg.hydra.job.num = cfg.hydra.job.id = number
            HydraConfig.instance().set_config(cfg)
            run = RunDir(Path(cfg.hydra.sweep.dir) / str(cfg.hydra.sweep.subdir))
            varied = (o for o, every in zip(overrides, values.values(), strict=True) if len(every) > 1)
            jobs.append(Job(run, fingerprint(cfg), " ".join(varied)))
            OmegaConf.copy_cache(from_config=cfg, to_config=config)  # ${now:} stays what it was
        Sweep.jobs = jobs
        if re.search("submitit|ray", str(config.hydra.launcher._target_)):
            Thread(target=_watch, args=(jobs,), daemon=True).start()

    def on_job_start(self, config: DictConfig, **kwargs: object) -> None:
        """Removes the sweep's command line: a secret may be in it."""
        (Path(config.hydra.runtime.cwd) / config.hydra.sweep.dir / "multirun.yaml").unlink(missing_ok=True)

    on_multirun_end = on_job_start  # of a sweep without jobs

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        """Drops a finished job's configurations, which would pile up until the end of the sweep."""
        job_return.cfg = job_return.hydra_cfg = None


def _watch(jobs: list[Job]) -> None:
    """Logs what becomes of jobs, until all have finished: a launcher that sends them elsewhere is mute."""
    known = [job.outcome[0] for job in jobs]
    while set(known) != {"finished"}:
        for number, job in enumerate(jobs):
            state, nll, why = job.outcome
            if state != known[number]:
                known[number] = state
                said = "running" if state == "running elsewhere" else f"{state} {nll}{why}".strip()
                log.info("job %d of %d, %s: %s", number + 1, len(jobs), job.run.path.name, said)
        time.sleep(WATCH)


@contextmanager
def isolated(run: RunDir) -> Iterator[None]:
    """Logs a job's failure and lets the sweep continue; outside a sweep, errors go on their way.

    Launchers disagree about what a job may do to its siblings: a ``SystemExit`` ends the whole of Hydra's own sweep,
    and under joblib takes the neighbours down.
    """
    failed = True
    try:
        yield
        failed = False
    except BaseException as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN or _stops_everything(error):
            if is_mistake(error):
                discard(run)
            raise
        if isinstance(error, SystemExit) and error.code not in STOPS and not _by_ray(error):
            write_whole(run.failure, f"sys.exit({error.code!r}) was called\n".encode())
        said = message(error) if isinstance(error, Exception) else f"{type(error).__name__} {error}"
        log.error("%s: %s", run.path, said.strip().partition("\n")[0])
    finally:
        if "wandb" in sys.modules:  # the next job in this process would otherwise go on in its W&B run
            sys.modules["wandb"].finish(exit_code=int(failed))


def _stops_everything(error: BaseException) -> bool:
    """Ctrl-C; and SIGTERM, when the job runs in the process of the sweep itself."""
    own = os.environ.get(PARENT) == str(os.getpid())
    return isinstance(error, KeyboardInterrupt) or (own and isinstance(error, SystemExit) and error.code in STOPS)


def _by_ray(error: SystemExit) -> bool:
    """Whether it is the way in which a worker is told to end: Ray's raises it wherever the job happens to be."""
    origin = list(traceback.walk_tb(error.__traceback__))[-1][0]
    return str(origin.f_globals.get("__name__")).startswith("ray.")


def summary(jobs: list[Job]) -> tuple[Group, bool]:
    """A row for each job, and whether all have finished."""
    outcomes = [job.outcome for job in jobs]
    states = [state for state, *_ in outcomes]
    table = Table()
    for heading in ("state", "test NLL", "job", "overrides"):
        table.add_column(heading, no_wrap=heading in ("state", "test NLL"), overflow="fold")
    for job, (state, nll, why) in zip(jobs, outcomes, strict=True):
        table.add_row(state, nll, escape(job.run.path.name), escape("\n".join(filter(None, [job.overrides, why]))))
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    # A cluster's jobs outlive the command that sent them.
    advice = "What runs elsewhere goes on: wait for it, or stop it there, before you give the command again"
    return Group(counts, table, *([advice] if "running elsewhere" in states else [])), set(states) <= {"finished"}
