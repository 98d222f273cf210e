"""Where a number comes from: machine, library versions, commit and date."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = ("chainrule", "torch", "lightning", "hydra-core", "numpy", "numba", "wandb")


def provenance(sources: Iterable[Path] = ()) -> dict[str, Any]:
    """Machine, library versions, commits and date: what a record says besides its numbers.

    Args:
        sources: the files that compute the number: see :func:`chainrule.runs.fingerprint.sources`.
    """
    return {
        "hardware": _hardware(),
        **program(tuple(sorted(sources))),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def program(files: tuple[Path, ...]) -> dict[str, Any]:
    """Library versions and commits, as they were when first asked: at the start, for what runs is what was there then.

    Raises:
        ValueError: a library is not installed.
    """
    try:
        versions = {name: version(name) for name in LIBRARIES}
    except PackageNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: a record names its version. Install it with pip") from error
    outside = [file for file in files if not file.is_relative_to(PACKAGE)]
    return {
        "versions": {"python": platform.python_version()} | versions,
        "git": _git(PACKAGE / "__init__.py", [file for file in files if file not in outside]),
        **({"model_git": _git(outside[0], outside)} if outside else {}),
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


def _git(first: Path, files: Sequence[Path]) -> dict[str, Any]:
    """The commit of a checkout, and whether it has changes, or files that compute, that no commit has."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603
                ["git", "-C", str(first.parent), *arguments],  # noqa: S607
                capture_output=True,
                text=True,
                check=True,
            )
        except OSError:
            return None
        except subprocess.CalledProcessError as error:
            if "dubious ownership" in error.stderr:
                log.warning("the record will name no commit: %s", error.stderr.strip().partition("\n")[0])
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", str(first)) is None and first.is_relative_to(PACKAGE):
        return {"commit": None, "dirty": None}  # installed files belong to no commit
    commit = git("rev-parse", "HEAD")
    # Records and certificates that were made again compute nothing.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    if files and not changed:  # without files, git would name every untracked one there is
        changed = git("ls-files", "--others", *map(str, files))
    return {"commit": commit, "dirty": bool(changed) if commit else None}
