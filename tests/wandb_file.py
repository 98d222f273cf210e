"""Reads the file of an offline W&B run."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as protocol


@dataclass
class Log:
    """The contents of an offline run."""

    run: protocol.RunRecord
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    artifacts: list[protocol.ArtifactRecord]


def records(path: Path) -> Iterator[protocol.Record]:
    """The records of a ``.wandb`` file: LevelDB's log format, in which a record may be cut into several chunks."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, record = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # a chunk does not begin in the last bytes of a block
            place += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[place : place + 7])
        chunk = data[place + 7 : place + 7 + length]
        if len(chunk) < length or kind == 0:  # torn by whoever killed the run
            return
        assert zlib.crc32(bytes([kind]) + chunk) == checksum
        place, record = place + 7 + length, record + chunk
        if kind in (1, 4):
            yield protocol.Record.FromString(record)
            record = b""


def items(found: Iterable[Any]) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in found}


def read(part: Path) -> Log:
    (path,) = part.glob("*.wandb")
    all_of_it = list(records(path))
    summary: dict[str, Any] = {}
    for record in all_of_it:
        summary |= items(record.summary.update)
    return Log(
        next(r.run for r in all_of_it if r.HasField("run")),
        [items(r.history.item) for r in all_of_it if r.HasField("history")],
        summary,
        [r.artifact for r in all_of_it if r.HasField("artifact")],
    )


def parts(run: Path) -> list[Path]:
    """The offline runs that a run directory holds, oldest first."""
    return sorted(run.glob("wandb/offline-run-*"))
