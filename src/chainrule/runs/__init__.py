"""The run directory: what a finished run leaves behind, and how to get the density back out of it."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import pickle
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.files import FULL, is_intact, is_sealed, write_whole
from chainrule.mixture import Mixture

log = logging.getLogger(__name__)

Kind = TypeVar("Kind")

PREFIX = "density."  # of the model's tensors in a checkpoint
MARK = "# fingerprint: "  # the first line of config.yaml
# Configuration that changes where, how loudly or how fast a number is computed, but not the number.
PLACES = ("paths", "paths.*", "hydra", "hydra.*", "*_dir", "*dirpath")
SECRETS = ("*key", "*token", "*secret", "*password")
SILENT = (*PLACES, *SECRETS, "resume", "logger", "samples", "trainer.enable_*", "trainer.log_every_n_steps")
COMPUTE = ("torch", "numpy", "numba", "lightning", "torchmetrics")
LIBRARIES = ("chainrule", "torch", "lightning", "hydra-core", "numpy", "numba", "wandb")


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


def device_named(name: str) -> torch.device:
    """The device that a user's ``device=`` means.

    Raises:
        ValueError: it is neither cpu nor cuda, or there is no CUDA GPU.
    """
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but no CUDA GPU is at hand: use device=cpu")
    return torch.device(name)


def load_model(run_dir: str | Path, device: str | torch.device = "cpu") -> BinaryDensity:
    """The density of a run, as it was selected on the validation images, in evaluation mode.

    Raises:
        FileNotFoundError: no run directory, or no checkpoint in it or in a mixture's member.
        ValueError: the checkpoint is damaged, foreign or holds more than tensors and builtins; or a mixture's
            member has changed.
    """
    run = open_run(run_dir)
    members = load_config(run).get("members")
    density = Mixture([_load_member(run, member) for member in members]) if members else load_selected(run)
    return density.to(device).eval()


def load_autoregressive(run_dir: str | Path, device: str | torch.device = "cpu") -> AutoregressiveDensity:
    """The same, for what needs an order.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`; or the run is a mixture.
    """
    density = load_model(run_dir, device)
    if not isinstance(density, AutoregressiveDensity):
        raise ValueError(
            f"{run_dir} is a mixture: it has no order of its own, so its images are not drawn or coded pixel by pixel. "
            "Take one of its members, which its config.yaml names"
        )
    return density


def _load_member(run: RunDir, member: DictConfig) -> BinaryDensity:
    path = run.path / member.run
    if not (RunDir(path).config.is_file() and RunDir(path).best.is_file()):
        raise FileNotFoundError(f"{run.path} is a mixture, and {path}, a member of it, is no longer there: mix again")
    if checkpoint_sha256(RunDir(path)) != member.sha256:
        raise ValueError(
            f"{run.path} is a mixture, and {path}, a member of it, has changed since: its checkpoint's SHA-256 is not "
            f"{member.sha256[:12]}…. Mix again"
        )
    return load_model(path)


def checkpoint_sha256(run: RunDir) -> str:
    """SHA-256 of what a run has selected: of ``best.ckpt``, or for a mixture of its members' hashes in a row."""
    if members := load_config(run).get("members"):
        return hashlib.sha256("".join(member.sha256 for member in members).encode()).hexdigest()
    with run.best.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_selected(run: RunDir) -> AutoregressiveDensity:
    """The density of a run that is no mixture, finished or not.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`.
    """
    if not run.best.is_file():
        raise FileNotFoundError(f"{run.best} does not exist: the run stopped before its first validation")
    state, shape = read_checkpoint(run.best)
    model = instance(load_config(run).model, AutoregressiveDensity, shape=shape)  # type: ignore[type-abstract]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{run.best} does not fit the model of {run.config}: {error}") from error
    return model.eval()


def instance(config: DictConfig, kind: type[Kind], **arguments: object) -> Kind:
    """What a run directory asks to be built, perhaps somebody else's: one of a kind, and nothing that runs other code.

    Raises:
        ValueError: it asks for anything else.
    """
    try:
        target = get_class(str(config.get("_target_")))
    except (ImportError, ValueError, HydraException) as error:
        raise ValueError(f"_target_: {config.get('_target_')} cannot be built here: {error}") from error
    if not issubclass(target, kind):
        raise ValueError(f"_target_: {config.get('_target_')} is no {kind.__name__}: this configuration is not trusted")
    built: Kind = instantiate(config, **arguments, _recursive_=False, _partial_=False, _convert_="all")
    return built


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], tuple[int, int]]:
    """The model's tensors and its image shape, read without executing anything."""
    try:
        content = path.read_bytes()
        if is_sealed(content) and not is_intact(content):
            raise ValueError("its checksum does not match: it was altered")
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        height, width = checkpoint["image_shape"]
        state = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, or no checkpoint of chainrule ({reason})") from error
    return state, (height, width)


# ---- runs that go on where they stopped ---------------------------------------------------------------


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds a run directory, which is made where it is missing. The kernel lets go of it when the process dies.

    Raises:
        ValueError: another process holds it.
        OSError: it cannot be made.
    """
    path.mkdir(parents=True, exist_ok=True)
    if (held := _flock(path, fcntl.LOCK_EX)) is None:
        raise ValueError(f"{path} is in use by another run: wait until that ends, or choose another hydra.run.dir")
    try:
        yield
    finally:
        os.close(held)


def in_use(path: Path) -> bool:
    """Whether a run holds this directory now."""
    if (held := _flock(path, fcntl.LOCK_SH)) is not None:
        os.close(held)
    return held is None


def _flock(path: Path, kind: int, patience: float = 0.3) -> int | None:
    """An open handle of a locked folder; None when somebody else keeps it locked."""
    handle = os.open(path, os.O_RDONLY)
    give_up = time.monotonic() + patience  # whoever only looks at a lock holds it for a moment, too
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > give_up:
                os.close(handle)
                return None
            time.sleep(0.02)
        except OSError as error:  # some network file systems lock no folders
            log.warning("%s cannot be locked (%s): see to it that no other run uses it", path, error)
            return handle


def fingerprint(cfg: DictConfig) -> str:
    """SHA-256 of all that the numbers of a run depend on: the configuration without :data:`SILENT`, and the program."""
    config = _without(SILENT, OmegaConf.to_container(cfg, resolve=True))
    return hashlib.sha256(f"{code_version()} {json.dumps(config, sort_keys=True)}".encode()).hexdigest()


def public_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration without secrets, and without where things are on this machine."""
    config: dict[str, Any] = _without(PLACES + SECRETS, OmegaConf.to_container(cfg, resolve=True))
    return config


def public_words(overrides: Sequence[str]) -> list[str]:
    """The words of a command line without those that say a secret, or where things are on this machine."""
    return [word for word in overrides if not _matches(word.partition("=")[0].lstrip("+~"), PLACES + SECRETS)]


def _without(patterns: Sequence[str], config: Any, prefix: str = "") -> Any:  # noqa: ANN401 (whatever is in the YAML)
    if not isinstance(config, dict):
        return config
    return {key: _without(patterns, value, f"{prefix}{key}.") for key, value in config.items()
            if not _matches(f"{prefix}{key}", patterns)}  # fmt: skip


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(key, pattern) for pattern in patterns)


@cache
def code_version() -> str:
    """SHA-256 of the program: all of this package's source, and the versions of the libraries that compute."""
    package = Path(__file__).resolve().parents[1]
    code = hashlib.sha256(" ".join(version(name) for name in COMPUTE).encode())
    for path in sorted(package.rglob("*.py")):
        code.update(f"\n{path.relative_to(package)}\n".encode() + path.read_bytes())
    return code.hexdigest()


def claim(run: RunDir, cfg: DictConfig) -> None:
    """Writes ``config.yaml``, which makes a folder a run directory; its first line is the fingerprint.

    Raises:
        ValueError: the record that is to follow cannot name a library, since it is not installed.
    """
    program()
    if not run.config.exists():
        config = OmegaConf.create(_without(SECRETS, OmegaConf.to_container(cfg, resolve=True)))
        write_whole(run.config, f"{MARK}{fingerprint(cfg)}\n{OmegaConf.to_yaml(config)}".encode())


def find_unfinished(folder: str | Path, fingerprint: str) -> Path | None:
    """The newest run directly below ``folder`` that has this fingerprint, no record, and nobody working on it."""
    found = [c for c in Path(folder).expanduser().glob("*/config.yaml") if stored_fingerprint(c) == fingerprint]
    newest_first = sorted(found, key=lambda config: config.stat().st_mtime, reverse=True)
    paths = (config.parent for config in newest_first if not RunDir(config.parent).record.exists())
    return next((path for path in paths if not in_use(path)), None)


def stored_fingerprint(config: Path) -> str | None:
    """The fingerprint in a ``config.yaml``; None: it has none."""
    with config.open(encoding="utf-8", errors="replace") as file:
        line = file.readline()
    return line.removeprefix(MARK).strip() if line.startswith(MARK) else None


def earlier(run: RunDir, cfg: DictConfig) -> dict[str, Any] | None:
    """The record of this very run, where it has finished; None: it has not, or has not even begun.

    Raises:
        ValueError: the directory holds another run, or (with ``resume=never``) any.
    """
    if not run.config.exists():
        return None
    if cfg.get("resume") == "never" or stored_fingerprint(run.config) != fingerprint(cfg):
        raise ValueError(
            f"{run.path} holds a run already, with other settings or of another version of the program (or "
            "resume=never): give this one another hydra.run.dir"
        )
    try:
        record: dict[str, Any] | None = json.loads(run.record.read_text()) if run.record.exists() else None
    except ValueError:
        raise ValueError(f"{run.record} is damaged: remove it, and the same command makes it again") from None
    return record


@contextmanager
def failure_noted(run: RunDir) -> Iterator[None]:
    """Leaves ``failure.txt``, the reason in one message, when what it is around fails; the log has the traceback."""
    run.failure.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        told = _with_cure(error, run)
        _log_to_files(error)
        with suppress(OSError):  # the disk may be what failed
            write_whole(run.failure, f"{reason(told)}\n".encode())
        raise told from error


def reason(error: Exception) -> str:
    """What went wrong, in the words of whoever found it first."""
    told = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    return str(told) or type(told).__name__


def _with_cure(error: Exception, run: RunDir) -> Exception:
    """The same error; one of a full disk says what to do."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return error
    what = f"{error.strerror}. Make room, then give the same command again: it goes on where it stopped"
    return OSError(error.errno, what, str(error.filename or run.path))


def _log_to_files(error: Exception) -> None:
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "the run failed", (), _info(error))
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _info(error: Exception) -> tuple[type[Exception], Exception, TracebackType | None]:
    return type(error), error, error.__traceback__


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a file that is either whole or absent.

    Raises:
        ValueError: the content has a number that is not finite.
        OSError: the folder cannot be written.
    """
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


# ---- where a number comes from ----------------------------------------------------------------------


def provenance() -> dict[str, Any]:
    """Machine, library versions, commit and date: what a record says besides its numbers."""
    return {
        "hardware": _hardware(),
        **program(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def program() -> dict[str, Any]:
    """Library versions and commit, as they were when first asked: at the start, for what runs is what was there then.

    Raises:
        ValueError: a library is not installed.
    """
    try:
        versions = {name: version(name) for name in LIBRARIES}
    except PackageNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: a record names its version. Install it with pip") from error
    return {
        "versions": {"python": platform.python_version()} | versions,
        "git": _git(Path(__file__).resolve().parents[1]),
    }


def _hardware() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _git(folder: Path) -> dict[str, Any]:
    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)  # noqa: S603, S607
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    tracked = git("ls-files", "--error-unmatch", __file__) is not None  # installed files belong to no commit
    commit = git("rev-parse", "HEAD") if tracked else None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no")) if commit else None}
