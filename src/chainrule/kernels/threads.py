# ruff: noqa: ANN401
"""Compiling loops, and sharing them out among threads."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.core.caching import FunctionCache

from chainrule.kernels.lanes import LANES, REORDERED

config: Any = numba.config
if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

HERE = Path(__file__).parent
SOURCES = sha256(b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py")))).hexdigest()


warn_once = cache(logging.getLogger(__name__).warning)


class Cache(FunctionCache):
    """numba's cache, whose loss costs time and nothing else: what cannot be read or written is compiled again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        # numba looks at a function's own file only; what it calls may stand in another one.
        assert self._cache_file._source_stamp
        self._cache_file._source_stamp = SOURCES

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return super().load_overload(*arguments)  # type: ignore[no-untyped-call]
        except Exception as error:  # a torn pickle may raise anything
            warn_once("numba's cache in %s cannot be read (%s): compiling again", self.cache_path, type(error).__name__)
            with suppress(OSError):
                self.flush()  # type: ignore[no-untyped-call]
            return None

    def save_overload(self, *arguments: Any) -> None:
        try:
            super().save_overload(*arguments)  # type: ignore[no-untyped-call]
        except Exception as error:
            warn_once("numba's cache in %s cannot be written (%s)", self.cache_path, error)


def compiled(function: Callable[..., Any], **options: bool) -> Any:
    """numba's compiler, on first call; where no folder for its cache can be written, without a cache."""
    given: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(REORDERED)} | options
    loop = numba.njit(**given)(function)
    with suppress(RuntimeError, AttributeError):
        loop._cache = Cache(function)
    return loop


def team(function: Callable[..., Any]) -> Any:
    """The same for a loop over threads."""
    return compiled(function, parallel=True)


class Threads:
    """Runs compiled loops on as many threads as torch would take, one call at a time.

    OpenMP's threads stay awake between calls that follow each other, as torch's do, so they start at once. They do not
    survive a fork: the child of a process that has started them computes on one thread.
    """

    def __init__(self) -> None:
        self.process = 0  # the one that started OpenMP's threads
        self.scratch = torch.empty(0, device="cpu")
        self.free = threading.Lock()  # for the scratch memory, and since numba's last resort takes one caller only

    def run(self, loop: Any, loops: Any, tasks: int, rows: int, *arguments: Any) -> None:
        """``loop(counter, scratch, *arguments)`` on one thread, or ``loops`` with a scratch for each of several.

        A loop counts tasks off with :func:`take`, so a thread that is held up gets fewer. Its scratch is (rows, LANES)
        float32 and starts on a cache line.
        """
        count = min(torch.get_num_threads(), config.NUMBA_NUM_THREADS, max(1, tasks))
        if self.process not in (0, os.getpid()):
            count = 1
        counter = np.zeros(1, np.int64)
        with self.free:
            scratch = self._scratch(count * rows).reshape(count, rows, LANES)
            if count == 1:
                loop(counter, scratch[0], *arguments)
                return
            self.process = os.getpid()
            before = numba.get_num_threads()
            numba.set_num_threads(count)
            try:
                loops(counter, scratch, *arguments)
            finally:
                numba.set_num_threads(before)

    def _scratch(self, rows: int) -> Any:
        if self.scratch.numel() < rows * LANES:
            self.scratch = torch.empty(rows * LANES, dtype=torch.float32, device="cpu")
        return self.scratch[: rows * LANES].numpy()

    def forked(self) -> None:
        self.free = threading.Lock()


threads = Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=threads.forked)
if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
