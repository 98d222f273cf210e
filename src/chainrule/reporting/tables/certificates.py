"""What ``chainrule certify`` said of a run, as far as a table needs it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainrule.reporting.tables.fields import Fields, read_json

SCHEMA = 1  # of certificate.json


@dataclass(frozen=True)
class Verdict:
    """Whether a record is certified, and what speaks against it."""

    certified: bool
    objection: str = ""


def read_verdict(run: Path, record: Mapping[str, Any]) -> Verdict | None:
    """The verdict of the certificate in a run directory on its record; None without a certificate.

    Raises:
        ValueError: the certificate is no JSON, lacks a field, or has a newer schema.
    """
    file = run / "certificate.json"
    if not file.is_file():
        return None
    get = Fields(read_json(file), file)
    get.schema(SCHEMA)
    if not _same_checkpoint(get, record):
        return Verdict(False, "the certificate is of another checkpoint")
    if not _same_number(get, record):
        return Verdict(False, "the certificate is of another number")
    if not get.flag("passed"):
        return Verdict(False, f"failed {_failed(get)}")
    return Verdict(True)


def _same_checkpoint(certificate: Fields, record: Mapping[str, Any]) -> bool:
    """By the checkpoint's hash, which early records do not have."""
    ours = record.get("checkpoint_sha256")
    return not ours or certificate.text_if_any("checkpoint_sha256") == str(ours)


def _same_number(certificate: Fields, record: Mapping[str, Any]) -> bool:
    theirs = certificate.number_if_any("test_nll")
    return theirs is not None and math.isclose(theirs, record["nll"]["test"]["mean"], rel_tol=0, abs_tol=1e-9)


def _failed(certificate: Fields) -> str:
    checks = certificate.get("checks", "a mapping", dict)
    failed = [name for name, check in checks.items() if isinstance(check, dict) and check.get("passed") is False]
    return ", ".join(failed) or "to pass"
