"""Where a number comes from: machine, library versions, commit and date."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("chainrule", "torch", "lightning", "hydra-core", "numpy", "numba", "wandb")


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
    import torch  # noqa: PLC0415 (slow to import)

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
