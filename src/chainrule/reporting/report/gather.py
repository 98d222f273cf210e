"""What a run directory has to show: curves, pictures and maps; any of them may be absent."""

from __future__ import annotations

import base64
import csv
import io
import logging
import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from chainrule.reporting.tables import Record

log = logging.getLogger(__name__)

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """An image inside the page."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Run:
    """A finished run, and what lies beside its record."""

    record: Record
    name: str
    train: Points  # (epoch, nats): mean over the epoch, while the weights were changing
    valid: Points  # (epoch, nats)
    samples: Picture | None
    completions: Picture | None
    pixels: np.ndarray | None  # (height, width) float64: mean nats of each pixel over the test images


def read_run(record: Record, tops: Iterable[Path]) -> Run:
    folder = record.path
    rows = read_metrics(folder / "metrics.csv")
    return Run(
        record=record,
        name=name_below(folder, tops),
        train=_curve(rows, "train/nll"),
        valid=_curve(rows, "val/nll"),
        samples=read_picture(folder / "samples.png"),
        completions=read_picture(folder / "completions.png"),
        pixels=read_pixels(folder / "nll_test.npz", record.side, record.n),
    )


def name_below(folder: Path, tops: Iterable[Path]) -> str:
    """The folder as seen from the one that was searched: no path of somebody's machine."""
    for top in tops:
        if folder.resolve() != top.resolve() and folder.resolve().is_relative_to(top.resolve()):
            return folder.resolve().relative_to(top.resolve()).as_posix()
    return folder.resolve().name


def read_metrics(file: Path) -> list[dict[str, str]]:
    """The lines of a metrics.csv; none where there is no such file."""
    if not file.is_file():
        return []
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8", errors="replace").replace("\0", ""))))


def _curve(rows: Sequence[dict[str, str]], column: str) -> Points:
    """The last finite value of every epoch, counted from 1."""
    found = {}
    for row in rows:
        epoch, value = _number(row.get("epoch")), _number(row.get(column))
        if math.isfinite(epoch + value):
            found[epoch + 1] = value
    return sorted(found.items())


def _number(text: object) -> float:
    try:
        return float(text) if isinstance(text, str) else math.nan
    except ValueError:  # a line that was cut off when the run was stopped
        return math.nan


def read_picture(file: Path) -> Picture | None:
    """A PNG as it is; None where it is absent or damaged."""
    if not file.is_file():
        return None
    content = file.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            return Picture(as_uri(content), image.width, image.height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        log.warning("%s is left out: %s", file, error)
        return None


def as_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def read_pixels(file: Path, side: int, n: int) -> np.ndarray | None:
    """Nats of each pixel as an image, where the run has written them down."""
    if not file.is_file():
        return None
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            pixels = arrays["pixels"] if "pixels" in arrays.files else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s is left out: %s", file, error)
        return None
    if pixels is None or pixels.shape != (n,) or n % side or not np.isfinite(pixels).all():
        return None
    return np.asarray(pixels, np.float64).reshape(-1, side)
