"""One run of the benchmark: measure everything, write ``bench.json`` and ``bench.png``."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from chainrule.bench import growth, machine, memory, overhead, speed
from chainrule.bench.clock import Clock, Spread, spread
from chainrule.bench.job import Job, job
from chainrule.bench.plot import save_plot
from chainrule.bench.targets import judged
from chainrule.bench.work import Ceiling, ceiling
from chainrule.runs.load import device_named
from chainrule.runs.provenance import provenance
from chainrule.runs.record import write_json
from chainrule.runs.settings import public_config, public_words
from chainrule.validate import number

log = logging.getLogger(__name__)

SCHEMA = 1  # of bench.json
FEWEST_ROUNDS = 5  # below it, quartiles say nothing

# What a number in the configuration may be at least.
LEAST: dict[str, tuple[type[int] | type[float], float]] = {
    "rounds": (int, FEWEST_ROUNDS), "seconds": (float, 0), "batch": (int, 1), "images": (int, 1),
    "epoch": (int, 1), "seed": (int, 0),
}  # fmt: skip

Measured = dict[str, tuple[Job, Spread]]


def check(cfg: DictConfig) -> None:
    """Looks at the configuration before anything costs time.

    Raises:
        ValueError: a number is mistyped or too small, a model is unknown, or there is no such device.
    """
    device_named(cfg.device)
    for key, (kind, least) in LEAST.items():
        number(key, cfg[key], kind, least)
    for model in cfg.models:
        if model not in cfg.zoo or not cfg.sizes.get(model):
            known = ", ".join(key for key in cfg.zoo if cfg.sizes.get(key))
            raise ValueError(f"models: {model!r} is not one of {known}; +model@zoo.{model}={model} and sizes add one")


def run(cfg: DictConfig, run_dir: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Measures, writes ``bench.json`` and ``bench.png`` into ``run_dir``, and returns the former's content.

    Raises:
        ValueError: the configuration cannot work.
    """
    check(cfg)
    started, out = time.perf_counter(), Path(run_dir)
    out.mkdir(parents=True, exist_ok=True)
    record = {"schema": SCHEMA, **provenance()} | _measured(cfg) | {
        "memory_method": memory.method(cfg.device),
        "instructions": machine.instructions(),
        "seconds": time.perf_counter() - started,
        "overrides": public_words(overrides),
        "config": public_config(cfg),
    }  # fmt: skip
    write_json(out / "bench.json", record)
    save_plot(record, out / "bench.png")
    log.info("written: %s", out)
    return record


def _measured(cfg: DictConfig) -> dict[str, Any]:
    """Every part of the record that takes time; the figures that targets are about are collected on the way."""
    clock, figures = Clock(rounds=cfg.rounds, seconds=cfg.seconds, device=cfg.device), Measured()
    others = machine.Others()
    log.info("the machine's ceiling")
    top = ceiling(clock)
    record: dict[str, Any] = {"ceiling": asdict(top), "models": [_model(cfg, one, clock) for one in _jobs(cfg)]}
    if "nade" in cfg.models:
        record["nade"] = _nade(cfg, clock, top, figures)
    if "mlp" in cfg.models:
        log.info("mlp: bfloat16")
        record["precision"] = speed.of_precision(_first(cfg, "mlp"), cfg.images, clock)
    if "fvsbn" in cfg.models:
        record["lightning"] = _fvsbn(cfg, clock, figures)
    if cfg.growth:
        log.info("growth")
        record["growth"] = growth.of_growth(cfg, clock)
    share = others.share()
    return record | {"others_share": share, "targets": judged(figures, share)}


def _nade(cfg: DictConfig, clock: Clock, top: Ceiling, figures: Measured) -> dict[str, Any]:
    """NADE and its rivals; adds four figures."""
    nade = _first(cfg, "nade")
    log.info("%s: its rivals", _label(nade))
    rivals = speed.of_rivals(nade, clock, top)
    if cfg.memory:
        peaks = memory.peaks([nade.changed(**change) for change in speed.RIVALS.values()])
        rivals = [rival | {"memory": peak} for rival, peak in zip(rivals, peaks, strict=True)]
        figures["memory"] = nade, spread([peaks[0] / 1e6])
    figures |= {rival["name"]: (nade, Spread(**rival["ratio"])) for rival in rivals}
    figures["sampling"] = nade, spread(speed.sampling_against_forward(nade, cfg.images, clock))
    return {"n": nade.n, "d": nade.d, "rivals": rivals}


def _fvsbn(cfg: DictConfig, clock: Clock, figures: Measured) -> dict[str, Any]:
    """Lightning's overhead, measured with the model that leaves most room for it; adds two figures."""
    fvsbn = _first(cfg, "fvsbn")
    log.info("%s: n full passes, and Lightning's overhead", _label(fvsbn))
    part = overhead.of_lightning(cfg, fvsbn, cfg.epoch, clock)
    figures["lightning"] = fvsbn, Spread(**part["ratio"])
    figures["passes"] = fvsbn, spread(speed.passes_against_sampling(fvsbn, clock))
    return part


def _jobs(cfg: DictConfig) -> list[Job]:
    return [job(cfg, model, size.n, size.get("d")) for model in cfg.models for size in cfg.sizes[model]]


def _first(cfg: DictConfig, model: str) -> Job:
    size = cfg.sizes[model][0]
    return job(cfg, model, size.n, size.get("d"))


def _model(cfg: DictConfig, one: Job, clock: Clock) -> dict[str, Any]:
    log.info("%s", _label(one))
    peak = {"memory": memory.peak(one)} if cfg.memory else {}
    return speed.of_model(one, cfg.images, clock) | peak


def _label(one: Job) -> str:
    return f"{speed.name(one)}, n = {one.n}" + (f", d = {one.d}" if one.d else "")
