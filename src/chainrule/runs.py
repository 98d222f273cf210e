"""The run directory: what a finished run leaves behind, and how to get the density back out of it."""

from __future__ import annotations

import json
import os
import pickle
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from chainrule.density import AutoregressiveDensity
from chainrule.files import write_whole

PREFIX = "density."  # of the model's tensors in a checkpoint
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
    def samples(self) -> Path:
        return self.path / "samples.png"

    @property
    def nll_test(self) -> Path:
        return self.path / "nll_test.npz"

    @property
    def record(self) -> Path:
        return self.path / "result.json"


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
    """The resolved configuration that the run was started with."""
    config = OmegaConf.load(run.config)
    if not isinstance(config, DictConfig):
        raise ValueError(f"{run.config} holds no mapping; it is not the configuration of a run")
    return config


def load_model(run_dir: str | Path, device: str | torch.device = "cpu") -> AutoregressiveDensity:
    """The density of a run, as it was selected on the validation images, in evaluation mode.

    Raises:
        FileNotFoundError: no run directory, or no checkpoint in it.
        ValueError: the checkpoint is damaged, foreign or holds more than tensors and builtins.
    """
    run = open_run(run_dir)
    if not run.best.is_file():
        raise FileNotFoundError(f"{run.best} does not exist: the run stopped before its first validation")
    state, shape = read_checkpoint(run.best)
    model: AutoregressiveDensity = instantiate(load_config(run).model, shape=shape, _convert_="all")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{run.best} does not fit the model of {run.config}: {error}") from error
    return model.to(device).eval()


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], tuple[int, int]]:
    """The model's tensors and its image shape, read without executing anything."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        height, width = checkpoint["image_shape"]
        state = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, or no checkpoint of chainrule ({reason})") from error
    return state, (height, width)


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
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "git": _git(Path(__file__).resolve().parent),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
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
