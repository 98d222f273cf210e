"""The run directory: the names of its files, its lock, and what became of the run in it. Knows no torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from chainrule.files import FULL, write_whole
from chainrule.runs.record import Record

log = logging.getLogger(__name__)

PATIENCE = 0.3  # seconds to wait for a lock: whoever only looks at one holds it for a moment, too
STUDY = "study.db"  # of a search: its trials are judged by validation images, and have no record


@dataclass(frozen=True)
class RunDir:
    """The names of everything in a run directory."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def completions(self) -> Path:
        return self.path / "completions.png"

    @property
    def failure(self) -> Path:
        return self.path / "failure.txt"

    @property
    def samples(self) -> Path:
        return self.path / "samples.png"

    @property
    def nll_test(self) -> Path:
        return self.path / "nll_test.npz"

    @property
    def record(self) -> Path:
        return self.path / "result.json"

    @property
    def certificate(self) -> Path:
        return self.path / "certificate.json"

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``unfinished`` or ``never started``."""
        if self.record.is_file():
            return "finished"
        if self.failure.is_file():
            return "failed"
        return "unfinished" if self.config.is_file() else "never started"

    @property
    def reason(self) -> str:
        """Why the run failed, in one line; empty for one that did not."""
        if self.status != "failed":
            return ""
        words = " ".join(self.failure.read_text(encoding="utf-8", errors="replace").split())
        return (words if len(words) <= 300 else f"{words[:299]}…") or "no reason given"


def open_run(path: str | Path) -> RunDir:
    """The run directory at ``path``.

    Raises:
        FileNotFoundError: there is none.
    """
    run = RunDir(Path(path).expanduser())
    if not run.config.is_file():
        raise FileNotFoundError(f"{path} is not a run directory: it has no config.yaml. `chainrule train` makes them")
    return run


def load_config(run: RunDir) -> DictConfig:
    """The resolved configuration that the run was started with.

    Raises:
        ValueError: ``config.yaml`` is none.
    """
    try:
        config = OmegaConf.load(run.config)
    except YAMLError as error:
        raise ValueError(f"{run.config} is damaged: {error}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{run.config} holds no mapping; it is not the configuration of a run")
    return config


def discover(runs: Sequence[Path | str] | Path | str) -> tuple[list[Record], list[RunDir]]:
    """Searches folders for run directories.

    Args:
        runs: run directories, folders that contain some at any depth, or result.json files.

    Returns:
        The records of finished runs, and the directories of those without one: failed, unfinished or never started.

    Raises:
        ValueError: a path does not exist, or a record cannot be read.
    """
    found: dict[Path, RunDir] = {}
    for run in [runs] if isinstance(runs, str | Path) else runs:
        for path in _run_directories(Path(run).expanduser()):
            found.setdefault(path.resolve(), RunDir(path))
    finished = [run for run in found.values() if run.record.exists()]
    return [Record.read(run.path) for run in finished], [run for run in found.values() if run not in finished]


def _run_directories(top: Path) -> Iterator[Path]:
    if not top.exists():
        raise ValueError(f"{top} does not exist: give run directories, or a folder that contains some")
    if top.is_file():
        yield top.parent if top.name == "result.json" else top
    for folder, subfolders, files in os.walk(top):
        if is_run := {"config.yaml", "result.json", "failure.txt"} & set(files):
            yield Path(folder)
        if is_run or STUDY in files:
            subfolders.clear()  # W&B keeps a config.yaml of its own further down
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


# ---- one process at a time ----------------------------------------------------------------------------


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds a run directory, which is made where it is missing. The system lets go of it when the process dies.

    Raises:
        ValueError: another process holds it.
        OSError: it cannot be made.
    """
    path.mkdir(parents=True, exist_ok=True)
    held = FileLock(path / ".lock")
    try:
        held.acquire(timeout=PATIENCE)
    except Timeout:
        raise ValueError(
            f"{path} is in use by another run: wait until that ends, or choose another hydra.run.dir"
        ) from None
    except NotImplementedError as error:  # some network file systems lock nothing
        log.warning("%s cannot be locked (%s): see to it that no other run uses it", path, error)
    try:
        yield
    finally:
        held.release()


def in_use(path: Path) -> bool:
    """Whether a run holds this directory now."""
    if not (path / ".lock").exists():
        return False
    try:
        with FileLock(path / ".lock", timeout=PATIENCE):
            return False
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return False


# ---- what went wrong ----------------------------------------------------------------------------------


@contextmanager
def failure_noted(run: RunDir) -> Iterator[None]:
    """Leaves ``failure.txt``, the reason in one message, when what it is around fails; the log has the traceback."""
    run.failure.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        told = _with_cure(error, run)
        record = log.makeRecord(
            log.name, logging.ERROR, __file__, 0, "the run failed", (), (type(error), error, error.__traceback__)
        )
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)
        with suppress(OSError):  # the disk may be what failed
            write_whole(run.failure, f"{message(told)}\n".encode())
        raise told from error


def message(error: Exception) -> str:
    """The message of the root cause."""
    told = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    return str(told) or type(told).__name__


def _with_cure(error: Exception, run: RunDir) -> Exception:
    """The same error; one of a full disk says what to do."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return error
    what = f"{error.strerror}. Make room, then give the same command again: it goes on where it stopped"
    return OSError(error.errno, what, str(error.filename or run.path))
