"""``nll_test.npz``: the NLL of each test image, written and read here. Knows no torch."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chainrule.files import content_of, read_small, write_whole
from chainrule.runs.record import Estimate, Record

FILE = "nll_test.npz"
LARGEST = 64 << 20  # bytes of an array in it, once unpacked


def save_nll(folder: Path, **nats: NDArray[np.float64]) -> None:
    """Writes nats: ``nll`` of each test image (N,), its mean at each pixel, ``pixels`` (n,)."""
    write_whole(folder / FILE, content_of(lambda file: np.savez_compressed(file, allow_pickle=False, **nats)))


def read_array(folder: Path, name: str = "nll") -> NDArray[np.float64]:
    """``nll`` (N,) or ``pixels`` (n,) in nats, as they were stored.

    Raises:
        ValueError: the file is missing or damaged, or has no finite numbers under this name.
    """
    file = folder / FILE
    try:
        with zipfile.ZipFile(io.BytesIO(read_small(file))) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > LARGEST:
                raise ValueError(f"{member.file_size:,} bytes")
            nats = np.asarray(np.load(io.BytesIO(archive.read(member)), allow_pickle=False), dtype=np.float64)
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing: the record alone does not have the NLL of each image") from error
    except Exception as error:  # a malformed archive may raise anything
        raise ValueError(f"{file} is damaged: it holds no numbers under the name {name} ({error})") from error
    if nats.ndim != 1 or not np.isfinite(nats).all():
        raise ValueError(f"{file}: {np.sum(~np.isfinite(nats))} of the {name} are not finite: nothing can be averaged")
    return nats


def read_nll(record: Record) -> NDArray[np.float64]:
    """(N,) nats of each test image of a record.

    Raises:
        ValueError: as :func:`read_array`, or the numbers in the record are not theirs.
    """
    nll = read_array(record.path)
    if reason := disagreement(record, nll):
        raise ValueError(f"{record.path / FILE} is not of this run: {reason}")
    return nll


def disagreement(record: Record, nll: NDArray[np.float64]) -> str:
    """What in a record is not as it follows from the NLL of each image by arithmetic; empty: all is."""
    if len(nll) != record.test.count:
        return f"{len(nll):,} images, not the record's {record.test.count:,}"
    ours, n = Estimate.of(nll), math.prod(record.data.size)
    if n != record.data.n:
        return f"images of {n} pixels, not the record's {record.data.n}"
    for name, found, recorded in (
        ("mean", ours.mean, record.test.mean),
        ("standard error", ours.stderr, record.test.stderr),
        ("bits per pixel", ours.mean / math.log(2) / n, record.bits_per_pixel),
    ):
        if not math.isclose(found, recorded, rel_tol=1e-6, abs_tol=1e-9):
            return f"their {name} is {found:.6f}, not the record's {recorded:.6f}"
    return ""
