"""What can happen to a run, as a callback: ``+callbacks.fault._target_=faults.Fault +callbacks.fault.kind=raise``."""

from __future__ import annotations

import os
import signal
import sys
import time

import lightning as L
import torch


class Fault(L.Callback):
    """At the start of its second epoch a run raises, leaves, dies or diverges; ``slow`` takes its time for each."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.kind == "slow":
            time.sleep(0.2)
        elif trainer.current_epoch == 1 and self.kind != "none":
            getattr(self, self.kind)(pl_module)

    def explode(self, pl_module: L.LightningModule) -> None:
        raise RuntimeError("out of luck\nand more about it")

    def leave(self, pl_module: L.LightningModule) -> None:
        sys.exit(0)

    def die(self, pl_module: L.LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def diverge(self, pl_module: L.LightningModule) -> None:
        with torch.no_grad():
            next(pl_module.parameters()).fill_(torch.nan)


def importable() -> None:
    """Lets the processes that a launcher starts find this file."""
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
