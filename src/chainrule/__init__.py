"""chainrule: exact-likelihood autoregressive models of binary images, fast, with numbers that can be proved.

In a notebook::

    import chainrule

    record = chainrule.train(model="nade", data="toy", overrides=["trainer.max_epochs=5"])
    density = chainrule.load_model(record.path)
    best = min(chainrule.records("runs"), key=lambda record: record.test.mean)
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chainrule.runs.load import load_model
    from chainrule.runs.record import Record

__all__ = ["__version__", "load_model", "records", "train"]

HERE = Path(__file__).resolve().parent
# The wheel carries conf/ inside the package; a checkout uses the one that its user edits.
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parents[1] / "conf"

try:
    __version__ = version("chainrule")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0"


def train(
    model: str | None = None,
    data: str | None = None,
    overrides: Sequence[str] = (),
    *,
    run_dir: str | Path | None = None,
) -> Record:
    """Trains a model as ``chainrule train`` does, and returns its record.

    Args:
        model: one of conf/model, as ``nade``; None: the default.
        data: one of conf/data, as ``toy``; None: the default.
        overrides: of the configuration, as on the command line: ``["optimizer.lr=0.01", "seed=1"]``.
        run_dir: the run directory; None: ``runs/MODEL-DATA-sSEED-FINGERPRINT``. What is finished there is not trained
            again, what was interrupted is resumed.

    Raises:
        ValueError: the configuration cannot work, training diverged, or the directory holds another run.
        OSError: images cannot be found, or files not be written.
    """
    from chainrule.training import train as training  # noqa: PLC0415 (seconds of imports, and --help needs none)

    if isinstance(overrides, str):
        raise ValueError(f"overrides must be a list of them, as [{overrides!r}]")
    choices = [f"{group}={choice}" for group, choice in (("model", model), ("data", data)) if choice]
    return training.compose_and_train([*choices, *overrides], run_dir)


def records(runs: str | Path | Sequence[str | Path]) -> list[Record]:
    """The records of all finished runs in folders; ``record.model_dump()`` of each makes a data frame.

    Args:
        runs: run directories, or folders that contain some at any depth.

    Raises:
        ValueError: a folder does not exist, or a record cannot be read.
    """
    from chainrule.runs.directory import discover  # noqa: PLC0415

    return discover(runs)[0]


def __getattr__(name: str) -> object:
    # torch is loaded when it is needed: `chainrule tabulate` and `--help` answer without it.
    if name == "load_model":
        from chainrule.runs.load import load_model  # noqa: PLC0415

        return load_model
    raise AttributeError(f"module 'chainrule' has no attribute {name!r}")
