"""The run directory: the names of its files, its lock, and what became of the run in it. Knows no torch."""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from chainrule.files import FULL, read_small, write_whole
from chainrule.runs.record import Record

log = logging.getLogger(__name__)

PATIENCE = 0.3  # seconds to wait for a lock: whoever only looks at one holds it for a moment, too
REFUSED = ("train.log", "failure.txt", ".lock", ".hydra")  # what there is of a run before it has begun
STUDY = "study.db"  # of a search: its trials are judged by validation images, and have no record


LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


def is_own(file: Path) -> bool:
    """Whether a source file is neither of Python nor of an installed package, but of a checkout or the user's own."""
    return file.is_file() and not any(file.is_relative_to(folder) for folder in LIBRARIES)


class _File:
    """What has this name in a run directory."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunDir, owner: type[RunDir]) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class RunDir:
    """The names of everything in a run directory."""

    path: Path

    config = _File("config.yaml")
    checkpoints = _File("checkpoints")
    best = _File("checkpoints/best.ckpt")
    completions = _File("completions.png")
    failure = _File("failure.txt")
    samples = _File("samples.png")
    nll_test = _File("nll_test.npz")
    record = _File("result.json")

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
        with self.failure.open(encoding="utf-8", errors="replace") as file:
            words = " ".join(file.read(1000).split())
        return (words if len(words) <= 300 else f"{words[:299]}…") or "no reason given"


def open_run(path: str | Path) -> RunDir:
    """The run directory at ``path``.

    Raises:
        FileNotFoundError: there is none.
    """
    run = RunDir(Path(path).expanduser())
    if run.config.is_file():
        return run
    if run.record.is_file():
        record = Record.read(run.path)
        again = "mix runs=DIR,DIR" if record.config.get("members") else f"train {record.command}"
        raise FileNotFoundError(
            f"{path} has the record of a run, but not its configuration and weights. To make them: chainrule {again}"
        )
    what = "it has no config.yaml. `chainrule train` makes them"
    around = next((folder for folder in run.path.parents if (folder / run.config.name).is_file()), None)
    if run.path.is_file() and around:
        what = f"it is a file of one. Give the directory: {around}"
    elif run.path.is_dir() and (inside := next(_run_directories(run.path), None)):
        what = f"there are some in it. Give one of them, such as {inside}"
    raise FileNotFoundError(f"{path} is not a run directory: {what}")


def load_config(run: RunDir) -> DictConfig:
    """The resolved configuration that the run was started with.

    Raises:
        ValueError: ``config.yaml`` is none.
    """
    try:
        text = read_small(run.config, limit=1 << 20).decode()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError(f"{run.config} has aliases: a few lines of them stand for gigabytes")
        config = OmegaConf.create(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{run.config} is damaged: {error}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{run.config} holds no mapping; it is not the configuration of a run")
    content = cast(dict[str, Any], OmegaConf.to_container(config))
    members = content.get("members") or []
    wrong = [key for key in ("model", "data") if not isinstance(content.get(key), dict)]
    if not isinstance(members, list) or not all(isinstance(m, dict) and {"run", "sha256"} <= set(m) for m in members):
        wrong.append("members")
    if wrong:
        raise ValueError(f"{run.config}: {wrong[0]} is not what a run has, got {content.get(wrong[0])!r:.60}")
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
        if isinstance(error, OSError) and error.errno in FULL:
            what = f"{error.strerror}. Make room, then rerun the same command to resume"
            error = OSError(error.errno, what, str(error.filename or run.path)).with_traceback(error.__traceback__)
        record = log.makeRecord(
            log.name, logging.ERROR, __file__, 0, "the run failed", (), (type(error), error, error.__traceback__)
        )
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)
        with suppress(OSError):  # the disk may be what failed
            write_whole(run.failure, f"{message(error)}\n".encode())
        raise error


def discard(run: RunDir) -> None:
    """Removes the directory of a run that was refused before it began: what is wrong was said.

    Another process may be about to begin in it: that is what was refused, then.
    """
    with suppress(OSError):
        begun = {file.name for file in run.path.iterdir()} - {*REFUSED}
        if not (begun or in_use(run.path) or run.path.resolve() == Path.cwd()):
            shutil.rmtree(run.path)


def is_mistake(error: BaseException) -> bool:
    """Whether a configuration or a machine is to blame: one message says it. Of a defect of ours a traceback is kept.

    Whatever Hydra and OmegaConf raise is about a configuration, be its class their own or not.
    """
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [cls.__module__ for cls in type(error).__mro__] + frames[-1:]
    return isinstance(error, (ValueError, OSError)) or any(n.startswith(("hydra.", "omegaconf.")) for n in names)


def message(error: BaseException) -> str:  # noqa: PLR0911
    """An error in one message: of Hydra's and OmegaConf's, what they wrap."""
    cause, said = error.__cause__, str(error)
    kind = type(error).__name__  # their classes are slow to import
    if kind == "InstantiationException" and cause:
        if isinstance(cause, (ValueError, OSError)):
            return message(cause)
        where = said.rpartition("full_key: ")[2] if "full_key: " in said else ""
        if said.startswith("Error locating target"):
            where = said.partition(", set env var")[0]
            while cause.__cause__:
                cause = cause.__cause__
        frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if is_own(Path(frame.filename))]
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        return f"{where}: {cause}{place}".removeprefix(": ")
    wrapped = "ValueError raised while resolving interpolation: "  # OmegaConf leaves no cause
    if kind == "InterpolationResolutionError" and said.startswith(wrapped):
        return said.removeprefix(wrapped).partition("\n    full_key: ")[0]
    if isinstance(error, OSError) and error.strerror and error.filename:
        room = ". Make room, or write to another folder" if error.strerror == os.strerror(error.errno or 0) else ""
        return f"{error.filename}: {error.strerror}" + room * (error.errno in FULL)
    if "Config group override must be" in said:
        return f"{said}. A group that can be switched off has the choice none: logger=none"
    if cause is not None and type(cause).__module__ == "omegaconf.errors":
        return f"{said}\n{cause}"
    return said or kind
