"""One run of the benchmark: measure, then write ``bench.json``, ``bench.md`` and ``bench.png``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from chainrule.bench.cases import Case, inference, make_case
from chainrule.bench.growth import measure_growth
from chainrule.bench.rivals import RIVALS, Rival
from chainrule.bench.roofline import Ceiling, count_flops, measure_ceiling
from chainrule.bench.table import render
from chainrule.bench.timing import Timer, quartiles
from chainrule.density import AutoregressiveDensity
from chainrule.files import content_of, write_whole
from chainrule.reporting.growth import growth_figure
from chainrule.runs.load import device_named
from chainrule.runs.provenance import provenance
from chainrule.runs.record import write_json
from chainrule.runs.settings import check, public_config, public_overrides
from chainrule.validate import number

log = logging.getLogger(__name__)

SCHEMA = 2  # of bench.json
OURS = "chainrule"


def bench(cfg: DictConfig, run_dir: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Measures the models of ``cfg.models``, writes three files into ``run_dir`` and returns the content of the JSON.

    Raises:
        ValueError: the configuration cannot work.
    """
    _check(cfg)
    started, out = time.perf_counter(), Path(run_dir)
    timer = Timer(rounds=cfg.rounds, seconds=cfg.seconds, device=cfg.device)
    log.info("ceiling of this machine")
    ceiling = measure_ceiling(timer)
    models: list[dict[str, Any]] = []
    rivals: list[dict[str, Any]] = []
    for name in cfg.models:
        log.info("%s", name)
        model, beside = measure(make_case(cfg, name), cfg.images, timer, ceiling)
        models.append(model)
        rivals += beside
    record = {"schema": SCHEMA, **provenance(), "ceiling": asdict(ceiling), "models": models, "rivals": rivals}
    if cfg.growth:
        log.info("growth")
        record["growth"] = measure_growth(cfg, timer)
    record |= {
        "seconds": time.perf_counter() - started,
        "overrides": public_overrides(overrides),
        "config": public_config(cfg),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "bench.png", content_of(growth_figure(record).savefig))
    write_whole(out / "bench.md", f"{render(record, 'markdown')}\n".encode())
    write_json(out / "bench.json", record)
    log.info("written to %s", out)
    return record


def _check(cfg: DictConfig) -> None:
    """Raises a ValueError for what cannot work, before anything costs time."""
    check(cfg)
    device_named(cfg.device)
    for key in ("pixels", "width", "growth_n", "growth_d", "zoo"):
        if not isinstance(cfg[key], DictConfig):
            raise ValueError(f"{key} must say something of each model, got {cfg[key]!r}")
    if not (isinstance(cfg.models, ListConfig) and all(isinstance(name, str) for name in cfg.models)):
        raise ValueError(f"models must be a list of names, got {cfg.models!r}")
    for key in ("rounds", "batch", "images"):
        number(key, cfg[key], int, 1)
    number("seconds", cfg.seconds, float, 0)
    for name in cfg.models:
        if name not in cfg.zoo:
            raise ValueError(
                f"models: {name!r} is not one of {', '.join(cfg.zoo)}; +model@zoo.{name}={name} adds one of conf/model"
            )
    for name, n in cfg.pixels.items():
        number(f"pixels.{name}", n, int, 1)
    for key in ("growth_n", "growth_d"):
        for name, sizes in cfg[key].items():
            if not isinstance(sizes, ListConfig):
                raise ValueError(f"{key}.{name} must be a list of sizes, got {sizes!r}")
            for size in sizes:
                number(f"{key}.{name}", size, int, 1)


def measure(case: Case, images: int, timer: Timer, ceiling: Ceiling) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The cost of a model and of its rivals, side by side; ratios are taken round by round."""
    density = case.density()
    rivals = {name: make(density) for name, make in RIVALS.get(case.name, {}).items()}
    steps = {OURS: case.training(density)} | {
        name: case.training_step(rival.parameters, _objective(density, rival)) for name, rival in rivals.items()
    }
    flops = [count_flops(step) for step in steps.values()]
    training = timer.alternate(steps)
    density.eval()
    x, generator = case.images(images), torch.Generator().manual_seed(case.seed)
    z = x[:, density.order].to(density.dtype)
    with torch.no_grad():
        seconds = timer.alternate(
            inference(density, x, generator)
            | {"one": lambda: density.sample(1, generator)}
            | {name: partial(rival.conditionals, z) for name, rival in rivals.items()}
        )
    sample, one_pass, step = seconds["sample"], seconds["pass"], quartiles(training[OURS])
    model = {
        "model": case.name, "n": case.n, "d": case.d, "parameters": density.parameter_count, "kernel": density.backend,
        "step_seconds": step,
        "bound_seconds": ceiling.seconds(min(filter(None, flops), default=0), density.parameter_count),
        "train_images_per_second": case.batch / step["median"],
        "score_images_per_second": images / quartiles(seconds["score"])["median"],
        "sample_images_per_second": images / quartiles(sample)["median"],
        "latency_seconds": quartiles(seconds["one"]),
        "sample_over_pass": quartiles(sample / one_pass),
        "n_passes_over_sample": quartiles(case.n * one_pass / sample),
    }  # fmt: skip
    return model, [
        {
            "model": case.name, "rival": name,
            "seconds": quartiles(training[name]),
            "ratio": quartiles(training[name] / training[OURS]),
            "sampling_ratio": quartiles(rival.passes * seconds[name] / sample),
        }
        for name, rival in rivals.items()
    ]  # fmt: skip


def _objective(density: AutoregressiveDensity, rival: Rival) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: rival.loss(x[:, density.order].to(density.dtype)).mean()
