"""Finding records below a folder, and what stands where a record should be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from chainrule.reporting.tables.fields import Fields, read_json
from chainrule.reporting.tables.records import Record, read_record

RUN_FILES = {"config.yaml", "result.json", "failure.txt"}  # any of them makes a folder a run directory
SWEEP = "sweep.json"  # the jobs of a sweep, whether they were started or not
STUDY = "study.db"  # a search: its trials are judged by validation images, and have no record


def find(runs: Sequence[Path | str] | Path | str) -> tuple[list[Record], list[Path]]:
    """Searches folders for run directories.

    Args:
        runs: run directories, folders that contain some at any depth, or result.json files.

    Returns:
        The records of finished runs, and the directories of those without one: failed, unfinished or never started.

    Raises:
        ValueError: a path does not exist, or a record cannot be read.
    """
    records: dict[Path, Record] = {}
    unfinished: dict[Path, Path] = {}
    for run in [runs] if isinstance(runs, str | Path) else runs:
        for path, finished in _run_directories(Path(run).expanduser()):
            if finished:
                records.setdefault(path.resolve(), read_record(path))
            else:
                unfinished.setdefault(path.resolve(), path)
    return list(records.values()), list(unfinished.values())


def _run_directories(top: Path) -> Iterator[tuple[Path, bool]]:
    if not top.exists():
        raise ValueError(f"{top} does not exist: give run directories, or a folder that contains some")
    if top.is_file():
        yield top.parent if top.name == "result.json" else top, True
    for folder, subfolders, files in os.walk(top):
        if RUN_FILES & set(files):
            yield Path(folder), "result.json" in files
        if SWEEP in files:
            yield from ((job, False) for job in _never_started(Path(folder)))
        if RUN_FILES & set(files) or STUDY in files:
            subfolders.clear()  # W&B keeps a config.yaml of its own further down
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


def _never_started(sweep: Path) -> Iterator[Path]:
    jobs = Fields(read_json(sweep / SWEEP), sweep / SWEEP).get("jobs", "a list", list)
    for job in jobs:
        folder = sweep / Fields(job, sweep / SWEEP).text("folder")
        if not any((folder / name).exists() for name in RUN_FILES):
            yield folder


def standing(run: Path) -> str:
    """What became of a run that has no record: ``failed``, ``unfinished`` or ``never started``."""
    if (run / "failure.txt").is_file():
        return "failed"
    return "unfinished" if (run / "config.yaml").is_file() else "never started"


def failure(run: Path) -> str:
    """Why a run failed, in one line; empty for one that did not."""
    if standing(run) != "failed":
        return ""
    words = " ".join((run / "failure.txt").read_text(encoding="utf-8", errors="replace").split())
    return (words if len(words) <= 300 else f"{words[:299]}…") or "no reason given"
