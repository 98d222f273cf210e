"""Peak memory of training beyond parameters and data, each time in a process of its own.

The process loads code and compiled kernels by training a tiny model of the kind, builds the model and its images,
hands freed memory back, and notes its resident size; then it trains a few steps. The peak of the resident size above
that note holds gradients, the optimizer's state, activations, scratch memory and what the allocator wastes.

On a GPU it is the peak of what torch has allocated there. On a CPU under Linux it is ``VmHWM`` of
/proc/self/status, which the process sets back at the note; elsewhere ``ru_maxrss``, which nobody can set back: there it
is a lower bound, short by what the process had freed before.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from chainrule.bench.job import Job

STEPS = 3  # the first makes gradients and optimizer state, the second needs them and activations
TINY = 6  # pixels
STATUS = Path("/proc/self/status")


def peaks(jobs: Sequence[Job]) -> list[int]:
    """Bytes for each job. Two at a time: how fast they are does not matter, and they share no memory."""
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        return list(pool.map(peak, jobs))


def peak(job: Job) -> int:
    """Bytes for a job, measured in a fresh process.

    Raises:
        RuntimeError: the process failed.
    """
    told = json.dumps({"job": asdict(job), "threads": torch.get_num_threads()})
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {job.model['_target_']} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def method(device: str) -> str:
    if device == "cuda":
        return "allocated on the GPU"
    return "VmHWM, set back" if STATUS.exists() else "ru_maxrss, a lower bound"


def measure(job: Job) -> int:
    """Bytes, measured in this process; only its first measurement is free of what came before."""
    _train(_tiny(job))
    step = job.training()
    _trim()
    before = _set_back(job.device)
    for _ in range(STEPS):
        step()
    return _highest(job.device) - before


def _tiny(job: Job) -> Job:
    small = {key: min(value, 2) for key, value in job.model.items() if key in ("hidden", "block")}
    return replace(job.changed(**small), n=TINY, batch=2)


def _train(job: Job) -> None:
    step = job.training()
    for _ in range(STEPS):
        step()


def _trim() -> None:
    """Hands freed memory back to the system, where the C library knows how (glibc)."""
    if sys.platform == "linux":
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back:
            give_back(0)


def _set_back(device: str) -> int:
    """Sets the peak back to the present size and returns it, in bytes; elsewhere, the peak so far."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not STATUS.exists():
        return _highest(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _highest(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    told: dict[str, Any] = json.loads(sys.stdin.read())
    torch.set_num_threads(told["threads"])
    print(measure(Job(**told["job"])))


if __name__ == "__main__":
    main()
