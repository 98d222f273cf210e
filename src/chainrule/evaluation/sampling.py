"""Images drawn from a finished run: samples and completions."""

from __future__ import annotations

import io
import re
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation.images import save_completions, save_grid
from chainrule.evaluation.scoring import BATCH, load_data
from chainrule.files import content_of, read_small, write_whole
from chainrule.orders import GRID_ORDERS
from chainrule.runs.directory import RunDir, load_config, open_run
from chainrule.runs.load import in_one_order, load_model
from chainrule.runs.record import Sampling
from chainrule.runs.settings import check

MOST_IN_PICTURE = 5000  # images


def draw_samples(density: BinaryDensity, run: RunDir, cfg: DictConfig) -> Sampling:
    """Writes ``samples.png``; returns the seconds for all its images at once, and for one alone."""
    (_, latency), (images, seconds) = _timed_sample(density, 1, cfg.seed), _timed_sample(density, cfg.samples, cfg.seed)
    save_grid(images, density.shape, run.samples)
    return Sampling(images=cfg.samples, seconds=seconds, latency=latency)


def _timed_sample(density: BinaryDensity, n: int, seed: int) -> tuple[Tensor, float]:
    density.sample(n)  # compiled here, where it is not timed
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    images = density.sample(n, generator)
    return images, time.perf_counter() - started


def sample(cfg: DictConfig) -> Path:
    """Draws ``n`` images and writes them as a grid (.png) or as bits (.npy); returns the file.

    Raises:
        ValueError: the file has another ending, or there are too many images for a picture.
    """
    check(cfg)
    out = _out(cfg, f"samples-n{cfg.n}-s{cfg.seed}.png")
    if out.suffix == ".png" and cfg.n > MOST_IN_PICTURE:
        raise ValueError(
            f"a picture has at most {MOST_IN_PICTURE:,} images, got n={cfg.n:,}: write bits, as in out=samples.npy"
        )
    density, generator = load_model(cfg.run, trust=cfg.trust), torch.Generator().manual_seed(cfg.seed)
    sizes = [min(BATCH, cfg.n - start) for start in range(0, cfg.n, BATCH)]
    images = torch.cat([density.sample(size, generator).to(torch.uint8) for size in sizes])
    if out.suffix == ".png":
        save_grid(images, density.shape, out)
    else:
        _save_bits(images.view(-1, *density.shape), out)
    return out


def complete(cfg: DictConfig) -> Path:
    """Completes test images: writes original, masked and draws side by side (.png), or the draws' bits (.npy).

    What is observed is the first part ``keep`` of the order, or ``observed``: see :func:`mask`. A model of any order
    takes an order that begins with it, a network in several orders that one of them which does; of every other model
    it must be a prefix of its order.

    Raises:
        ValueError: the model has no such order, or the file has another ending.
    """
    check(cfg)
    out = _out(cfg, "completions.png")
    model = load_model(cfg.run, trust=cfg.trust)
    density = in_one_order(model, cfg.run, cfg.order)
    generator = torch.Generator().manual_seed(cfg.seed)
    observed = _first(density, cfg.keep)
    if cfg.observed is not None:
        observed = mask(str(cfg.observed), density.shape, generator)
        density = _beginning_with(observed, model, cfg, generator)
    data = load_data(cfg, load_config(open_run(cfg.run)).data)
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(cfg.seed))[: cfg.n]
    images = data.test[chosen]
    drawn = _completed(density, images, observed, cfg.draws, cfg.seed)
    if out.suffix == ".png":
        save_completions(images, observed, drawn, density.shape, out)
    else:
        _save_bits(drawn.to(torch.uint8).view(len(images), cfg.draws, *density.shape), out)
    return out


def _beginning_with(
    observed: Tensor, model: BinaryDensity, cfg: DictConfig, generator: torch.Generator
) -> AutoregressiveDensity:
    """The model in an order that begins with the observed pixels (n,), or a ValueError that says which ones do."""
    density = in_one_order(model, cfg.run, cfg.order)
    if density.any_order and cfg.order is None:
        return density.reordered(order_after(observed, generator))
    if bool(observed[density.order[: (count := int(observed.sum()))]].all()):
        return density
    orders = {name: density.checked(name) for name in GRID_ORDERS if name in density.orders}
    fitting = [name for name, order in orders.items() if bool(observed[order[:count]].all())]
    for name in [name for name in fitting if cfg.order in (None, name)]:
        with suppress(ValueError):  # not one of its orders
            return in_one_order(model, cfg.run, name)
    cures = [f"{', '.join(fitting)} do: train with model.order={name}, or orders=grid" for name in fitting[:1]]
    what = f"order={cfg.order} does not begin" if cfg.order else f"no order of {cfg.run} begins"
    cures.append("a model of any order, such as deep_nade, takes any mask")
    raise ValueError(f"observed={cfg.observed}: {what} with these pixels; {'; '.join(cures)}")


def mask(name: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """The observed pixels, (n,) bool.

    Args:
        name: a half of the image (``left``, ``right``, ``top``, ``bottom``), its ``centre`` (half as high and wide),
            ``random-0.3`` (that part of the pixels), or a picture of that size, whose bright pixels are observed.
        shape: (height, width).
        generator: source of the random pixels.

    Raises:
        ValueError: it is none of these, or a picture of another size.
        OSError: there is no such picture.
    """
    height, width = shape
    row, column = torch.arange(height)[:, None].expand(shape), torch.arange(width).expand(shape)
    halves = {
        "left": 2 * column < width,
        "right": 2 * column >= width,
        "top": 2 * row < height,
        "bottom": 2 * row >= height,
        "centre": (4 * row >= height) & (4 * row < 3 * height) & (4 * column >= width) & (4 * column < 3 * width),
    }
    if name in halves:
        return halves[name].reshape(-1)
    if part := re.fullmatch(r"random-(0?\.\d+|0|1)", name):
        observed = torch.zeros(height * width, dtype=torch.bool)
        observed[torch.randperm(len(observed), generator=generator)[: round(float(part[1]) * len(observed))]] = True
        return observed
    if not name.endswith(".png"):
        raise ValueError(f"observed must be {', '.join(halves)}, random-0.3 or a .png file, got {name!r}")
    content = io.BytesIO(read_small(Path(name).expanduser()))
    try:
        with Image.open(content, formats=["PNG"]) as picture:
            if picture.size != (width, height):
                raise ValueError(f"{name} must have {height}×{width} pixels, got {picture.height}×{picture.width}")
            return torch.from_numpy(np.asarray(picture.convert("L")) >= 128).reshape(-1)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is no PNG picture, or is damaged ({error})") from error


def order_after(observed: Tensor, generator: torch.Generator) -> Tensor:
    """A random order, (n,), of the observed pixels and then of the others."""
    shuffled = torch.randperm(len(observed), generator=generator)
    return torch.cat([shuffled[observed[shuffled]], shuffled[~observed[shuffled]]])


def save_completed(
    density: AutoregressiveDensity, images: Tensor, path: Path, *, keep: float = 0.5, draws: int = 6, seed: int = 0
) -> None:
    """Completes images (B, n) from the first ``keep`` of the order, ``draws`` times each, and writes them as a grid."""
    observed = _first(density, keep)
    save_completions(images, observed, _completed(density, images, observed, draws, seed), density.shape, path)


def _first(density: AutoregressiveDensity, keep: float) -> Tensor:
    observed = torch.zeros(density.dim, dtype=torch.bool)
    observed[density.order[: round(keep * density.dim)]] = True
    return observed


def _completed(density: AutoregressiveDensity, images: Tensor, observed: Tensor, draws: int, seed: int) -> Tensor:
    """(B, draws, n) bits."""
    generator = torch.Generator().manual_seed(seed)
    parts = [density.complete(x, observed, generator) for x in images.repeat_interleave(draws, 0).split(BATCH)]
    return torch.cat(parts).view(len(images), draws, -1)


def _out(cfg: DictConfig, name: str) -> Path:
    out = Path(cfg.out or Path(cfg.run) / name).expanduser()
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"out must end in .png or .npy, got {out}")
    return out


def _save_bits(bits: Tensor, out: Path) -> None:
    write_whole(out, content_of(lambda file: np.save(file, bits.numpy(), allow_pickle=False)))
