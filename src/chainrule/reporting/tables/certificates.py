"""What ``chainrule certify`` said of a run, as far as a table needs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainrule.runs.certificate import Verdict, verdict
from chainrule.runs.record import Record

__all__ = ["Verdict", "read_verdict"]


def read_verdict(run: Path, record: Mapping[str, Any]) -> Verdict | None:
    """The verdict of the certificate in a run directory on its record; None without a certificate."""
    if not (run / "certificate.json").is_file():
        return None
    return verdict(run, Record.read(run))
