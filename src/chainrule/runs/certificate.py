"""``certificate.json``: what ``chainrule certify`` found, and whether it is still about what is there. No torch."""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from chainrule import files
from chainrule.runs import nll
from chainrule.runs.record import FILE as RECORD
from chainrule.runs.record import Record, read_json, validated, write_json

SCHEMA = 2  # 1 names the checkpoint and the test NLL only
FILE, CONFIG, BEST = "certificate.json", "config.yaml", "checkpoints/best.ckpt"


class Check(BaseModel):
    """One check; its other fields are what it measured, or its first counterexample."""

    model_config = ConfigDict(extra="allow", frozen=True)

    passed: bool | None = Field(strict=True)  # None: it does not apply


class Hashes(BaseModel):
    """SHA-256 of what the checks looked at. What is not there was never looked at."""

    model_config = ConfigDict(frozen=True)

    record: str  # of the content of result.json, whatever its layout
    nll_test: str
    config: str
    checkpoint: str  # of best.ckpt; of a mixture, of its members' hashes in a row


class Certificate(BaseModel):
    """The checks of a run, and what they are about."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    schema_version: int = Field(SCHEMA, alias="schema", ge=1, le=SCHEMA)
    sha256: Hashes | None = None
    checkpoint_sha256: str | None = None  # in schema 1
    test_nll: float | None = None
    passed: bool = Field(strict=True)
    checks: dict[str, Check] = {}

    @model_validator(mode="after")
    def _names_what_it_is_about(self) -> Self:
        if self.schema_version > 1 and self.sha256 is None:
            raise ValueError("sha256 is missing")
        return self

    @property
    def checkpoint(self) -> str | None:
        return self.sha256.checkpoint if self.sha256 else self.checkpoint_sha256

    @classmethod
    def read(cls, file: Path) -> Self:
        """Raises a ValueError with file and field where it is none."""
        content = read_json(file)
        if isinstance(content, dict) and isinstance(schema := content.get("schema"), int) and schema > SCHEMA:
            raise ValueError(f"{file}: schema {schema} is newer than this chainrule, which reads up to {SCHEMA}")
        return validated(cls, content, file)

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, self.model_dump(mode="json", by_alias=True, exclude_unset=True))


@dataclass(frozen=True)
class Verdict:
    """Whether a record is certified, what speaks against it, and what a reader should know besides."""

    certified: bool
    objection: str = ""
    warning: str = ""


def verdict(folder: Path, record: Record) -> Verdict | None:
    """The verdict of the certificate in a run directory on its record; None without a certificate.

    All that the certificate names is looked up where the files are there, and what is arithmetic is done again.

    Raises:
        ValueError: the certificate cannot be read, or has a newer schema.
    """
    if not (folder / FILE).exists():
        return None
    certificate = Certificate.read(folder / FILE)
    objection = next(_objections(folder, record, certificate), "")
    return Verdict(not objection, objection, suspicion(record))


def _objections(folder: Path, record: Record, certificate: Certificate) -> Iterator[str]:
    checkpoint, hashes, checks = certificate.checkpoint, certificate.sha256, certificate.checks
    tested, failed = checks.get("recomputation"), [name for name, check in checks.items() if check.passed is False]
    if not (record.checkpoint_sha256 or hashes):
        yield "the record names no checkpoint: certify again"
    if record.checkpoint_sha256 and checkpoint != record.checkpoint_sha256:
        yield "the certificate is of another checkpoint"
    if not math.isclose(certificate.test_nll or math.nan, record.test.mean, rel_tol=0, abs_tol=1e-9):
        yield "the certificate is of another number"
    if failed or not certificate.passed:
        yield f"failed {', '.join(failed) or 'to pass'}"
    if not any(check.passed for check in checks.values()):
        yield "the certificate has no checks in it"
    if tested and (tested.model_extra or {}).get("sha256", "") not in ("", record.data.sha256.get("test")):
        yield "the certificate is of other test images"
    if hashes and record_sha256(folder) != hashes.record:
        yield "the record has changed since it was certified"
    yield from _changed(folder, record.config.get("members") or [], certificate)
    if (folder / nll.FILE).exists():
        try:
            nll.read_nll(record)
        except ValueError as error:
            yield str(error).removeprefix(f"{folder}/")


def _changed(folder: Path, members: list[dict[str, Any]], certificate: Certificate) -> Iterator[str]:
    """Files of the run, and checkpoints of a mixture's members where its record says, that have changed."""
    known = {str(Path(str(member.get("run"))) / BEST): member.get("sha256") for member in members}
    joined = hashlib.sha256("".join(str(member.get("sha256")) for member in members).encode()).hexdigest()
    if members and certificate.checkpoint != joined:
        yield "the certificate is of other members"
    files = known if members else {BEST: certificate.checkpoint}
    if certificate.sha256:
        files |= {nll.FILE: certificate.sha256.nll_test, CONFIG: certificate.sha256.config}
    for name, sha256 in files.items():
        if sha256 and (found := file_sha256(folder / name)) and found != sha256:
            yield f"{name} has changed since it was certified"


def suspicion(record: Record) -> str:
    """What a reader should know: test images far more probable than validation images may have been trained on."""
    valid, test = record.nll.get("valid"), record.test
    if valid and valid.mean - test.mean > max(0.1 * valid.mean, 5 * math.hypot(valid.stderr, test.stderr)):
        return (
            f"the test NLL, {test.mean:.2f}, is far below the validation NLL, {valid.mean:.2f} nats: "
            "were the test images trained on?"
        )
    return ""


def record_sha256(folder: Path) -> str:
    """Of all that the record says, however its JSON is laid out."""
    content = json.dumps(read_json(folder / RECORD), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def file_sha256(file: Path) -> str | None:
    """None: there is no such regular file."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return None
        return files.file_sha256(file)
    except FileNotFoundError:
        return None
