"""The benchmark's record as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chainrule.reporting import render as rendering
from chainrule.reporting.format import three_digits
from chainrule.reporting.render import Block, Column, Grid

Record = Mapping[str, Any]


def render(record: Record, form: str = "console") -> str:
    """Every table that the record has something for, as ``console`` text or as ``markdown``."""
    hardware, config = record["hardware"], record["config"]
    cpu = f"{hardware['cpu']}, {hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"
    machine = hardware["gpu"] if config["device"] == "cuda" else cpu
    commit = (record["git"]["commit"] or "unknown")[:8]
    closing = f"measured on {machine}, {record['date'][:10]}, commit {commit}; medians, and quartiles in brackets"
    return rendering.render(list(_grids(record)), [closing], form)


def _grids(record: Record) -> Iterator[Grid]:
    config = record["config"]
    ceiling = f"{record['ceiling']['flops'] / 1e9:,.0f} Gflop/s, {record['ceiling']['bytes'] / 1e9:,.1f} GB/s"
    yield _grid(
        f"images per second, training {config['batch']:,} at a time, scoring and sampling {config['images']:,}",
        ["model", "n", "d", "parameters", "train", "score", "sample", "one sample, ms", "of roofline"],
        [_model(model) for model in record["models"]],
        "of roofline: the least time that a training step could take at the ceiling measured in this run, "
        f"{ceiling}, over its time",
    )
    yield _grid(
        f"sampling {config['images']:,} images",
        ["model", "times one forward pass", "faster than n full passes"],
        [
            [m["model"], _ratio(m.get("sample_over_pass")), _ratio(m.get("n_passes_over_sample"))]
            for m in record["models"]
        ],
    )
    if record["rivals"]:
        yield _grid(
            "the same models as they are usually written, beside this package",
            ["model", "rival", "training step, ms", "times ours", "sampling, times ours"],
            [
                [r["model"], r["rival"], _ms(r["seconds"]), _ratio(r["ratio"]), _ratio(r.get("sampling_ratio"))]
                for r in record["rivals"]
            ],
            left=2,
        )
    if record.get("growth", {}).get("fits"):
        yield _grid(
            "growth of a training step",
            ["model", "against", "formula", "parameters", "time"],
            [[f["model"], f["against"], f["claim"], *_powers(f)] for f in record["growth"]["fits"]],
            "exponents on the upper half of the range",
            left=3,
        )


def _grid(title: str, columns: Sequence[str], lines: list[list[str]], note: str = "", left: int = 1) -> Grid:
    heads = [Column(column, left=i < left) for i, column in enumerate(columns)]
    return Grid(title, heads, [Block(lines)], [note] if note else [])


def _model(model: Record) -> list[str]:
    return [
        model["model"], str(model["n"]), "" if model["d"] is None else str(model["d"]), f"{model['parameters']:,}",
        *(three_digits(model[f"{what}_images_per_second"]) for what in ("train", "score", "sample")),
        _ms(model["latency_seconds"]),
        f"{model['bound_seconds'] / model['step_seconds']['median']:.0%}",
    ]  # fmt: skip


def _powers(fit: Record) -> list[str]:
    exponents = [fit["exponents"][key] for key in ("parameters", "seconds")]
    base, variable = fit["base"], fit["against"]
    return ["" if e is None else f"{base}^({e:.2f} {variable})" if base else f"{variable}^{e:.2f}" for e in exponents]


def _ms(seconds: Record) -> str:
    return three_digits(1e3 * seconds["median"])


def _ratio(ratio: Record | None) -> str:
    if not ratio:
        return ""
    median, low, high = (three_digits(ratio[key]) for key in ("median", "low", "high"))
    return f"{median} ({low}–{high})"
