"""Lossless coding with a density: an image takes about −log₂ p(x) bits.

Encoder and decoder follow the same ``walk``, in the same batches; an entropy coder (ANS, from the ``constriction``
library) writes or reads the batch's bits of each step with the model's own conditional probabilities. The decoder knows
nothing but the model and the bits that it has read, so a model that peeks at what it is to predict gains nothing.

Both sides must compute the same probabilities, bit for bit. The walk is therefore taken in float64, and its logits are
rounded to a multiple of ``STEP``: libraries, thread counts and processors that differ in the last digits agree after
that, but for one logit in about 10¹². The rounding costs about a millionth of the size. What remains is checked, never
assumed: :func:`compress` decodes what it has written, and a file knows the SHA-256 of its images.
"""

from __future__ import annotations

import copy
import hashlib
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from constriction import stream
from numpy.typing import NDArray
from torch import Tensor

from chainrule.density import AutoregressiveDensity, BinaryDensity

STEP = 1 / 64  # of the grid of logits
EDGE = 1024  # its last point, a logit of 16: the coder counts probabilities in 2⁻²⁴, and e⁻¹⁶ is two of these
BATCH = 1000  # images that walk together

FORMAT = 1
# What it is; its format; height, width; images; words of 32 bits; SHA-256 of model and of images; then the words, and
# the SHA-256 of everything before it.
HEADER = struct.Struct("<8sHHHxxQQ32s32s")
MAGIC = b"CHNRULE\n"
CHECKSUM = hashlib.sha256().digest_size

Words = NDArray[np.uint32]
Grid = NDArray[np.int16]  # logits in multiples of STEP


class Coded(NamedTuple):
    """Images as a stream of bits."""

    words: Words
    ideal: float  # bits: Σ −log₂ of the probabilities that the coder was given
    clamped: int  # pixels whose logit was at the edge of the grid, or beyond

    @property
    def bits(self) -> int:
        return 32 * len(self.words)


def reference(density: BinaryDensity) -> BinaryDensity:
    """A copy in float64, without compiled kernels, which know float32 only."""
    exact = copy.deepcopy(density).double().eval()
    for part in exact.modules():
        if hasattr(part, "kernel"):
            part.kernel = "torch"  # type: ignore[assignment]
    return exact


@torch.no_grad()
def follow(density: AutoregressiveDensity, batch: int, answer: Callable[[int, Tensor], Tensor]) -> None:
    """Walks: at step t, ``answer(t, logits)`` gets the (B,) logits and returns the (B,) bits."""
    steps = density.walk(batch)
    logits = next(steps)
    for t in range(density.dim):
        bits = answer(t, logits).to(density.device, density.dtype)
        if t + 1 < density.dim:
            logits = steps.send(bits)


# ---- streams of bits ----------------------------------------------------------------------------------


def encode(density: AutoregressiveDensity, images: Tensor) -> Coded:
    """Codes pixel-indexed images, (N, n) uint8 of 0 and 1.

    Raises:
        ValueError: the model gave a logit that is no number.
    """
    exact = cast(AutoregressiveDensity, reference(density))
    parts = [x[:, exact.order.cpu()] for x in images.cpu().split(BATCH)]
    grids = [_grid_along(exact, z) for z in parts]
    encoder, family, ideal = stream.stack.AnsCoder(), _family(), 0.0
    for z, k in zip(reversed(parts), reversed(grids), strict=True):  # a stack: what is read first is written last
        symbols = z.T.int().flatten().numpy()
        encoder.encode_reverse(symbols, family, _sigmoid(k.ravel()))
        ideal += float(np.logaddexp(0, np.where(symbols, -STEP, STEP) * k.ravel()).sum()) / math.log(2)
    return Coded(encoder.get_compressed(), ideal, sum(int((abs(k) == EDGE).sum()) for k in grids))


def decode(density: AutoregressiveDensity, words: Words, count: int) -> Tensor:
    """The ``count`` images that :func:`encode` made these words of, (count, n) uint8; other words give other images."""
    exact = cast(AutoregressiveDensity, reference(density))
    decoder, family = stream.stack.AnsCoder(words), _family()
    images = torch.zeros(count, exact.dim, dtype=torch.uint8)
    for x in images.split(BATCH):

        def read(t: int, logits: Tensor, x: Tensor = x) -> Tensor:
            bits = torch.from_numpy(decoder.decode(family, _sigmoid(_on_grid(t, logits))))
            x[:, int(exact.order[t])] = bits
            return bits

        follow(exact, len(x), read)
    return images


def _family() -> Any:  # noqa: ANN401 (the library has no types)
    return stream.model.Bernoulli(perfect=False)


def _grid_along(density: AutoregressiveDensity, z: Tensor) -> Grid:
    """The logits on the way through images z (B, n) in chain order, in multiples of ``STEP``: (n, B)."""
    grid = np.empty(z.T.shape, np.int16)

    def note(t: int, logits: Tensor) -> Tensor:
        grid[t] = _on_grid(t, logits)
        return z[:, t]

    follow(density, len(z), note)
    return grid


def _on_grid(t: int, logits: Tensor) -> Grid:
    if not bool(logits.isfinite().all()):
        raise ValueError(f"the model cannot code: a logit of step {t} is {logits[~logits.isfinite()][0].item()}")
    return np.rint(logits.cpu().numpy() / STEP).clip(-EDGE, EDGE).astype(np.int16)


def _sigmoid(k: Grid) -> NDArray[np.float64]:
    p: NDArray[np.float64] = 1 / (1 + np.exp(-STEP * k))
    return p


# ---- files --------------------------------------------------------------------------------------------


class Header(NamedTuple):
    """What a file says of itself."""

    shape: tuple[int, int]
    total: int
    model: bytes
    images: bytes


def compress(density: AutoregressiveDensity, images: Tensor) -> bytes:
    """A file of images, (N, n) uint8 of 0 and 1, that the same model can read; it has been read once already.

    Raises:
        ValueError: decoding did not give the images back: the model's probabilities are not reproducible.
    """
    coded = encode(density, images)
    content = _packed(Header(density.shape, len(images), fingerprint(density), _digest(images)), coded.words)
    if not torch.equal(decode(density, coded.words, len(images)), images):
        raise ValueError("the images could not be decoded again: the model computes other numbers every time")
    return content


def decompress(density: AutoregressiveDensity, content: bytes, name: str = "the file") -> Tensor:
    """The images in a file, (N, n) uint8.

    Raises:
        ValueError: it is no such file, truncated, altered, of a newer format or of another model; or this machine
            computes other probabilities than the one that wrote it. ``name`` is named in the message.
    """
    header, words = unpack(content, name)
    if header.model != fingerprint(density):
        raise ValueError(
            f"{name} was written by another model (SHA-256 {header.model.hex()[:12]}…, this run's is "
            f"{fingerprint(density).hex()[:12]}…): give the run that it was compressed with"
        )
    images = decode(density, words, header.total)
    if _digest(images) != header.images:
        raise ValueError(
            f"{name} cannot be read here: this machine or its libraries compute other probabilities than where it was "
            "written. Decompress it there, or with the versions that the run's result.json names"
        )
    return images


def unpack(content: bytes, name: str) -> tuple[Header, Words]:
    """Header and words of a file that is whole.

    Raises:
        ValueError: it is not.
    """
    if not content.startswith(MAGIC):
        raise ValueError(f"{name} is no file of `chainrule compress`")
    if len(content) < HEADER.size + CHECKSUM or hashlib.sha256(content[:-CHECKSUM]).digest() != content[-CHECKSUM:]:
        raise ValueError(f"{name} is truncated or altered: its checksum does not match. Get a fresh copy of it")
    _, version, height, width, count, length, model, images = HEADER.unpack_from(content)
    if version > FORMAT:
        raise ValueError(f"{name} has format {version}, this chainrule reads up to {FORMAT}: upgrade chainrule")
    words = np.frombuffer(content, "<u4", length, HEADER.size).astype(np.uint32)
    return Header((height, width), count, model, images), words


def fingerprint(density: BinaryDensity) -> bytes:
    """SHA-256 of a model: of its class and all of its tensors, the order among them."""
    digest = hashlib.sha256(f"{type(density).__qualname__} {density.shape}".encode())
    for name, tensor in sorted(density.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.digest()


def _packed(header: Header, words: Words) -> bytes:
    (height, width), count, model, images = header
    head = HEADER.pack(MAGIC, FORMAT, height, width, count, len(words), model, images)
    content = head + words.astype("<u4").tobytes()
    return content + hashlib.sha256(content).digest()


def _digest(images: Tensor) -> bytes:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).digest()
