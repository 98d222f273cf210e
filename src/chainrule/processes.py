"""Several processes that train together (DDP): what makes them one run, with the numbers of one process."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


class SharedLog(Callback):
    """Lets the first of the processes that Lightning starts write to the log files of the one that starts them."""

    def __init__(self) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # as here, so there
        handlers = logging.getLogger().handlers
        self.files = [Path(handler.baseFilename) for handler in handlers if isinstance(handler, logging.FileHandler)]
        self.format = next((handler.formatter._fmt for handler in handlers if handler.formatter), None) or "%(message)s"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.is_global_zero and not logging.getLogger().handlers:
            files = [logging.FileHandler(path) for path in self.files]
            logging.basicConfig(level=logging.INFO, format=self.format, handlers=[logging.StreamHandler(), *files])


@contextmanager
def errors_of_children() -> Iterator[None]:
    """A ValueError or OSError of a process that Lightning started is raised as one, not as the text of a traceback."""
    try:
        yield
    except ProcessRaisedException as error:
        name, _, said = str(error).strip().splitlines()[-1].partition(": ")
        kinds = {"ValueError": ValueError, "OSError": OSError}
        if name not in kinds:
            raise
        raise kinds[name](said) from error


# What libraries say of themselves and nobody can act on: silenced here, since every process imports this.
for name in ("lightning.pytorch", "lightning.fabric", "matplotlib"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.* is deprecated")
warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")  # ours holds the configuration already
