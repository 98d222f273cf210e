"""Lossless coding with a density: an image takes about −log₂ p(x) bits. ``chainrule compress`` and ``decompress``.

Encoder and decoder follow the same ``walk``, in the same batches; an entropy coder (ANS, from the ``constriction``
library) writes or reads the batch's bits of each step with the model's own conditional probabilities. The decoder knows
nothing but the model and the bits that it has read, so a model that peeks at what it is to predict gains nothing.

Both sides must compute the same probabilities, bit for bit. The walk is therefore taken in float64, and its logits are
rounded to a multiple of ``STEP``: libraries, thread counts and processors that differ in the last digits agree after
that, but for one logit in about 10¹². The rounding costs about a millionth of the size. What remains is checked, never
assumed: :func:`compress` decodes what it has written, and a file knows the SHA-256 of its images.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from constriction import stream
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from rich import box
from rich.table import Table
from torch import Tensor

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation import scoring
from chainrule.files import LARGEST, content_of, read_small, write_whole
from chainrule.runs.load import load_autoregressive
from chainrule.runs.settings import check
from chainrule.testing import walk_along

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
    nats: Tensor  # (N,): −log p of each image by the logits before they were rounded

    @property
    def bits(self) -> int:
        return 32 * len(self.words)


# ---- streams of bits ----------------------------------------------------------------------------------


def encode(density: AutoregressiveDensity, images: Tensor) -> Coded:
    """Codes pixel-indexed images, (N, n) uint8 of 0 and 1.

    Raises:
        ValueError: the model gave a logit that is no number.
    """
    exact = density.reference()
    parts = [x[:, exact.order.cpu()] for x in images.cpu().split(BATCH)]
    walks = [walk_along(exact, z) for z in parts]
    # A stack: what is read first is written last.
    symbols = [z.T.int().flatten().numpy() for z in reversed(parts)]
    return _encoded(symbols, [on_grid(walk).T.ravel() for walk in reversed(walks)], torch.cat(parts), torch.cat(walks))


def _encoded(symbols: Sequence[NDArray[np.int32]], grids: Sequence[Grid], z: Tensor, logits: Tensor) -> Coded:
    encoder, family, ideal = stream.stack.AnsCoder(), _family(), 0.0
    for bits, k in zip(symbols, grids, strict=True):
        encoder.encode_reverse(bits, family, _sigmoid(k))
        ideal += float(np.logaddexp(0, np.where(bits, -STEP, STEP) * k).sum()) / math.log(2)
    clamped = sum(int((abs(k) == EDGE).sum()) for k in grids)
    return Coded(encoder.get_compressed(), ideal, clamped, -F.logsigmoid((2.0 * z - 1) * logits).sum(1))


@torch.no_grad()
def decode(density: AutoregressiveDensity, words: Words, count: int) -> Tensor:
    """The ``count`` images that :func:`encode` made these words of, (count, n) uint8; other words give other images."""
    exact = density.reference()
    decoder, family = stream.stack.AnsCoder(words), _family()
    images = torch.zeros(count, exact.dim, dtype=torch.uint8)
    for x in images.split(BATCH):
        steps = exact.walk(len(x))
        logits = next(steps)
        for t, pixel in enumerate(exact.order.tolist()):
            x[:, pixel] = torch.from_numpy(decoder.decode(family, _sigmoid(on_grid(logits[:, None], t)[:, 0])))
            if t + 1 < exact.dim:
                logits = steps.send(x[:, pixel].to(exact.device, exact.dtype))
    return images


def encode_each(density: AutoregressiveDensity, images: Tensor) -> list[Coded]:
    """Codes every image into a stream of its own, by all conditionals at once: for models without a fast walk.

    Raises:
        ValueError: the model gave a logit that is no number.
    """
    exact = density.reference()
    z = images.cpu()[:, exact.order.cpu()]
    logits = scoring.in_batches(lambda part: exact.conditionals(part.to(exact.dtype)), z, exact.device)
    rows = zip(z, on_grid(logits), logits, strict=True)
    return [_encoded([bits.int().numpy()], [k], bits[None], row[None]) for bits, k, row in rows]


def decode_each(density: AutoregressiveDensity, streams: Sequence[Words]) -> Tensor:
    """The images that :func:`encode_each` made these streams of, (N, n) uint8.

    The decoder guesses the rest of each image, computes all conditionals of the guess at once, and reads until a bit
    differs from it: up to there, all it was given was right. So it needs as many rounds as an image has surprises.
    """
    exact, family = density.reference(), _family()
    z = torch.zeros(len(streams), exact.dim, dtype=torch.uint8)
    decoders = [stream.stack.AnsCoder(words) for words in streams]
    done = np.zeros(len(streams), int)
    while len(open_ := np.flatnonzero(done < exact.dim)):
        grids = on_grid(scoring.in_batches(lambda x: exact.conditionals(x.to(exact.dtype)), z[open_], exact.device))
        for i, k in zip(open_, grids, strict=True):
            guess, p = z[i].numpy(), _sigmoid(k)
            read = decoders[i].clone().decode(family, p[done[i] :])
            wrong = np.flatnonzero(read != guess[done[i] :])
            count = int(wrong[0]) + 1 if len(wrong) else exact.dim - done[i]
            guess[done[i] : done[i] + count] = decoders[i].decode(family, p[done[i] : done[i] + count])
            done[i] += count
            guess[done[i] :] = k[done[i] :] > 0
    return torch.empty_like(z).index_copy(1, exact.order.cpu(), z)


def _family() -> Any:  # noqa: ANN401 (the library has no types)
    return stream.model.Bernoulli(perfect=False)


def on_grid(logits: Tensor, step: int = 0) -> Grid:
    """(B, T) logits from a step on, in multiples of ``STEP``.

    Raises:
        ValueError: one of them is no number.
    """
    if not bool((finite := logits.isfinite()).all()):
        i, t = (~finite).nonzero()[0].tolist()
        raise ValueError(f"the model cannot code: a logit of step {step + t} is {logits[i, t].item()}")
    return np.rint(logits.cpu().numpy() / STEP).clip(-EDGE, EDGE).astype(np.int16)


def _sigmoid(k: Grid) -> NDArray[np.float64]:
    p: NDArray[np.float64] = 1 / (1 + np.exp(-STEP * k))
    return p


# ---- files --------------------------------------------------------------------------------------------


def pack(density: AutoregressiveDensity, images: Tensor) -> bytes:
    """A file of images, (N, n) uint8 of 0 and 1, that the same model can read; it has been read once already.

    Raises:
        ValueError: decoding did not give the images back: the model's probabilities are not reproducible.
    """
    words = encode(density, images).words
    if not torch.equal(decode(density, words, len(images)), images):
        raise ValueError("the images could not be decoded again: the model computes other numbers every time")
    digests = fingerprint(density), _digest(images)
    content = HEADER.pack(MAGIC, FORMAT, *density.shape, len(images), len(words), *digests)
    content += words.astype("<u4").tobytes()
    return content + hashlib.sha256(content).digest()


def unpack(density: AutoregressiveDensity, content: bytes, name: str = "the file") -> Tensor:
    """The images in a file, (N, n) uint8.

    Raises:
        ValueError: it is no such file, truncated, altered, of a newer format or of another model; or this machine
            computes other probabilities than the one that wrote it. ``name`` is named in the message.
    """
    if not content.startswith(MAGIC):
        raise ValueError(f"{name} is no file of `chainrule compress`")
    if len(content) < HEADER.size + CHECKSUM or hashlib.sha256(content[:-CHECKSUM]).digest() != content[-CHECKSUM:]:
        raise ValueError(f"{name} is truncated or altered: its checksum does not match. Get a fresh copy of it")
    _, version, _, _, count, length, model, digest = HEADER.unpack_from(content)
    if version > FORMAT:
        raise ValueError(f"{name} has format {version}, this chainrule reads up to {FORMAT}: upgrade chainrule")
    if model != (ours := fingerprint(density)):
        raise ValueError(
            f"{name} was written by another model (SHA-256 {model.hex()[:12]}…, this run's is {ours.hex()[:12]}…): "
            "give the run that it was compressed with, and its order="
        )
    if count * density.dim > LARGEST:
        raise ValueError(f"{name} says that it has {count:,} images: more than {LARGEST:,} pixels are not decoded")
    images = decode(density, np.frombuffer(content, "<u4", length, HEADER.size).astype(np.uint32), count)
    if _digest(images) != digest:
        raise ValueError(
            f"{name} cannot be read here: this machine or its libraries compute other probabilities than where it was "
            "written. Decompress it there, or with the versions that the run's result.json names"
        )
    return images


def fingerprint(density: BinaryDensity) -> bytes:
    """SHA-256 of a model: of its class and all of its tensors, the order among them."""
    digest = hashlib.sha256(f"{type(density).__qualname__} {density.shape}".encode())
    for name, tensor in sorted(density.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.digest()


def _digest(images: Tensor) -> bytes:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).digest()


# ---- commands -----------------------------------------------------------------------------------------


def compress(cfg: DictConfig) -> Table:
    """Codes images of the run's data, or of a .npy file, into one file, which has been read back before.

    Args:
        cfg: the composed configuration of ``conf/compress.yaml``.

    Returns:
        The size of the file, and what others need for its images.

    Raises:
        ValueError: the images are not the model's, or the run is a mixture.
        OSError: something cannot be found, or the file not be written.
    """
    check(cfg)
    density, path = load_autoregressive(cfg.run, trust=cfg.trust, order=cfg.order), Path(cfg.file).expanduser()
    images = _read(Path(str(cfg.images)).expanduser(), density) if cfg.images else scoring.load_split(cfg)
    content = pack(density, images)
    write_whole(path, content)
    sheet = Table(box=box.HORIZONTALS, title=f"{len(images):,} images in {path}", title_justify="left")
    for header in ("", "bytes", "bits an image", "times ours"):
        sheet.add_column(header, justify="right" if header else "left")
    for name, size in {path.name: len(content), **rivals(images, density.shape)}.items():
        sheet.add_row(name, f"{size:,}", f"{8 * size / len(images):.1f}", f"{size / len(content):.2f}")
    return sheet


def decompress(cfg: DictConfig) -> tuple[Path, int]:
    """Writes the images of a file as a .npy file, (N, height, width) uint8; returns its path and N.

    Raises:
        ValueError: the file is damaged or of another model.
        OSError: something cannot be found, or the file not be written.
    """
    check(cfg)
    density, source = load_autoregressive(cfg.run, trust=cfg.trust, order=cfg.order), Path(cfg.file).expanduser()
    out = Path(cfg.out).expanduser() if cfg.out else source.with_name(f"{source.name}.npy")
    if out.suffix != ".npy":
        raise ValueError(f"out must end in .npy, got {out}")
    images = unpack(density, read_small(source, LARGEST), str(source))
    bits = images.view(-1, *density.shape).numpy()
    write_whole(out, content_of(lambda file: np.save(file, bits, allow_pickle=False)))
    return out, len(images)


def _read(path: Path, density: AutoregressiveDensity) -> Tensor:
    """Somebody's own images: (N, height, width) or (N, n) of 0 and 1, as a .npy file of any type of number."""
    try:
        array = np.load(io.BytesIO(read_small(path, LARGEST)), allow_pickle=False)
        pixels = array.reshape(len(array), -1)
        binary = bool(np.isin(pixels, (0, 1)).all())
    except (ValueError, EOFError, AttributeError, TypeError, MemoryError) as error:
        raise ValueError(f"{path} holds no array of images: save one with numpy.save ({error})") from error
    if not binary or pixels.shape[1] != density.dim:
        height, width = density.shape
        raise ValueError(
            f"{path} must hold images of {height}×{width} pixels, each 0 or 1, got an array {array.shape} of "
            f"{array.dtype}{'' if binary else ' with other values'}"
        )
    return torch.from_numpy(pixels.astype(np.uint8))


def rivals(images: Tensor, shape: tuple[int, int]) -> dict[str, int]:
    """Bytes that the same images, (N, n) uint8 of 0 and 1, take otherwise.

    gzip and xz get them packed, eight pixels a byte, and once more one pixel a byte: the smaller file counts.
    """
    pixels = images.numpy().reshape(-1, *shape)
    layouts = np.packbits(pixels).tobytes(), pixels.tobytes()
    return {
        "xz -9": min(len(lzma.compress(layout, preset=9)) for layout in layouts),
        "gzip -9": min(len(gzip.compress(layout, 9)) for layout in layouts),
        "PNG, all images in one": _png(_mosaic(pixels)),
        "PNG, a file for each": sum(map(_png, pixels)),
        "raw bits": len(layouts[0]),
    }


def _mosaic(pixels: np.ndarray) -> np.ndarray:
    """Images (N, height, width), side by side in a square of them."""
    count, height, width = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    full = np.zeros((rows * columns, height, width), np.uint8)
    full[:count] = pixels
    mosaic: np.ndarray = full.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, -1)
    return mosaic


def _png(bits: np.ndarray) -> int:
    """The size of a picture as a PNG of one bit a pixel."""
    file = io.BytesIO()
    Image.fromarray(bits.astype(bool)).save(file, "PNG", optimize=True)
    return file.tell()
