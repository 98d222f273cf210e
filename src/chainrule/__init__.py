"""chainrule: exact-likelihood autoregressive models of binary images, fast, with numbers that can be proved."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chainrule.runs.load import load_model

__all__ = ["__version__", "load_model"]

try:
    __version__ = version("chainrule")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0"


def __getattr__(name: str) -> object:
    # torch is loaded when it is needed: `chainrule tabulate` and `--help` answer without it.
    if name == "load_model":
        from chainrule.runs.load import load_model  # noqa: PLC0415

        return load_model
    raise AttributeError(f"module 'chainrule' has no attribute {name!r}")
