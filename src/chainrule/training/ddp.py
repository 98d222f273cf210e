"""Several processes that train together (DDP): what makes them one run, with the numbers of one process."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed
from torch.multiprocessing.spawn import ProcessRaisedException


def weight(images: int, device: torch.device) -> float:
    """What the mean over this process's share of a batch counts, so that gradients come out as those of one process.

    DDP takes the mean over the processes, and their shares may differ by an image.
    """
    if not _several():
        return 1.0
    total = sum_over_processes(torch.tensor(images, device=device))
    return images * distributed.get_world_size() / int(total)


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of what all processes have; changes ``value``."""
    if _several():
        distributed.all_reduce(value)
    return value


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


class Child(Callback):
    """Makes the processes that Lightning starts behave as parts of the one that starts them."""

    def __init__(self) -> None:
        handlers = logging.getLogger().handlers
        self.files = [Path(handler.baseFilename) for handler in handlers if isinstance(handler, logging.FileHandler)]
        self.format = next((handler.formatter._fmt for handler in handlers if handler.formatter), None) or "%(message)s"
        os.environ.setdefault("WANDB_SILENT", "true")  # as here, so there

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The first of them writes to the same log."""
        if trainer.is_global_zero and not logging.getLogger().handlers:
            files = [logging.FileHandler(path) for path in self.files]
            logging.basicConfig(level=logging.INFO, format=self.format, handlers=[logging.StreamHandler(), *files])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """SIGTERM ends them at once. Lightning's own handler would first wait for the others, for ever."""
        if trainer.num_devices > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # torch tells them by SIGINT that their parent is dead; a job in the background of a shell ignores it.
            if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def parent_of(trainer: L.Trainer) -> Iterator[None]:
    """What happens to a training in several processes happens to this one, and the other way round.

    Raises:
        ValueError, OSError: raised by one of them; Lightning has it as the text of a traceback.
        SystemExit: with code 143, this process was asked to end (SIGTERM), and so were they.
    """
    if trainer.num_devices == 1:
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except ProcessRaisedException as error:
        name, _, said = str(error).strip().splitlines()[-1].partition(": ")
        kinds = {"ValueError": ValueError, "OSError": OSError}
        raise kinds.get(name, RuntimeError)(said or name) from error
    except BaseException:
        if (launcher := trainer.strategy.launcher) is not None:
            launcher.kill(signal.SIGTERM)  # Python waits for them before it ends
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


# What libraries say of themselves and nobody can act on: silenced here, since every process imports this.
for name in ("lightning.pytorch", "lightning.fabric", "matplotlib"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.* is deprecated")
warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")  # ours holds the configuration already
