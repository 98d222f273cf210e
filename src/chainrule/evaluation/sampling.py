"""Images drawn from a finished run: samples and completions."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation.images import save_completions, save_grid
from chainrule.evaluation.scoring import load_data
from chainrule.files import content_of, write_whole
from chainrule.runs.directory import RunDir, load_config, open_run
from chainrule.runs.load import load_autoregressive, load_model
from chainrule.runs.record import Sampling
from chainrule.runs.settings import check


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
    """Draws ``n`` images and writes them as a grid (.png) or as bits (.npy); returns the file."""
    check(cfg)
    density = load_model(cfg.run, trust=cfg.trust)
    images = density.sample(cfg.n, torch.Generator().manual_seed(cfg.seed))
    out = Path(cfg.out or Path(cfg.run) / f"samples-n{cfg.n}-s{cfg.seed}.png").expanduser()
    if out.suffix == ".npy":
        bits = images.to(torch.uint8).view(-1, *density.shape).numpy()
        write_whole(out, content_of(lambda file: np.save(file, bits, allow_pickle=False)))
    elif out.suffix == ".png":
        save_grid(images, density.shape, out)
    else:
        raise ValueError(f"out must end in .png or .npy, got {out}")
    return out


def complete(cfg: DictConfig) -> Path:
    """Completes test images from the first part of the order; writes original, masked and draws side by side."""
    check(cfg)
    density, config = load_autoregressive(cfg.run, trust=cfg.trust), load_config(open_run(cfg.run))
    data = load_data(cfg, config.data)
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(cfg.seed))[: cfg.n]
    out = Path(cfg.out or Path(cfg.run) / "completions.png").expanduser()
    save_completed(density, data.test[chosen], out, keep=cfg.keep, draws=cfg.draws, seed=cfg.seed)
    return out


def save_completed(
    density: AutoregressiveDensity, images: Tensor, path: Path, *, keep: float = 0.5, draws: int = 6, seed: int = 0
) -> None:
    """Completes images (B, n) from the first ``keep`` of the order, ``draws`` times each, and writes them as a grid."""
    observed = torch.zeros(density.dim, dtype=torch.bool)
    observed[density.order[: round(keep * density.dim)]] = True
    generator = torch.Generator().manual_seed(seed)
    drawn = density.complete(images.repeat_interleave(draws, 0), observed, generator)
    save_completions(images, observed, drawn.view(len(images), draws, -1), density.shape, path)
