"""The command in processes of its own, which tests can kill; they start in an instant, with everything imported."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["warm"])


def start(
    words: Sequence[str], cwd: Path, output: Path | None = None, fault: Callable[[], None] | None = None
) -> ForkServerProcess:
    """``chainrule`` with these words in a folder; ``fault`` is called in the process first."""
    with contextlib.chdir(Path(__file__).parent):  # where the server finds ``warm``
        forkserver.ensure_running()
    process = CONTEXT.Process(target=_main, args=(list(words), str(cwd), output and str(output), fault))
    process.start()
    return process


def finish(words: Sequence[str], cwd: Path, fault: Callable[[], None] | None = None) -> tuple[int, str]:
    """The exit code, and all that the command said."""
    output = cwd / f"output-{os.urandom(4).hex()}.txt"
    process = start(words, cwd, output, fault)
    process.join()
    said = output.read_text()
    output.unlink()
    return process.exitcode or 0, said


def _main(words: list[str], cwd: str, output: str | None, fault: Callable[[], None] | None) -> None:
    import torch

    from chainrule import cli

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background, it is ignored
    os.chdir(cwd)
    sys.argv = ["chainrule", *words]
    os.environ.pop("HYDRA_FULL_ERROR", None)
    with contextlib.ExitStack() as stack:
        if output:
            file = stack.enter_context(Path(output).open("w", buffering=1))
            stack.enter_context(contextlib.redirect_stdout(file))
            stack.enter_context(contextlib.redirect_stderr(file))
        if fault:
            fault()
        try:
            cli.main()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
                raise SystemExit(1) from None
            raise
