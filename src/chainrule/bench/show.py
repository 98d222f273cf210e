"""The benchmark's record as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from chainrule.bench.machine import QUIET

Record = dict[str, Any]


def tables(record: Record) -> Iterator[Table]:
    """Every table that the record has something for."""
    parts = {"models": _models, "nade": _rivals, "precision": _precision, "lightning": _lightning, "growth": _growth}
    for part, make in parts.items():
        if part in record:
            yield make(record)
    if record["targets"]:
        yield _targets(record)


def _table(title: str, caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """A table whose first columns are words and whose others are numbers."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _models(record: Record) -> Table:
    hardware, config = record["hardware"], record["config"]
    cpu = f"{hardware['cpu']}, {hardware['threads']} threads"
    title = f"Images per second, batches of {config['batch']}; {hardware['gpu'] if config['device'] == 'cuda' else cpu}"
    caption = (
        f"Scoring and sampling {config['images']:,} images at once. Memory: peak of training beyond parameters and "
        f"data, with gradients and optimizer state ({record['memory_method']})."
    )
    columns = ("model", "n", "d", "parameters", "train", "score", "sample", "one sample", "memory")
    return _table(title, caption, columns, [_model(m) for m in record["models"]])


def _model(m: Record) -> Sequence[str]:
    rates = [f"{m[f'{what}_images_per_second']:,.0f}" for what in ("train", "score", "sample")]
    latency = seconds_as_text(m["latency_seconds"]["median"])
    return [m["model"], str(m["n"]), _d(m), f"{m['parameters']:,}", *rates, latency, _bytes(m)]


def _rivals(record: Record) -> Table:
    nade, top = record["nade"], record["ceiling"]
    title = f"One training step of NADE, n = {nade['n']}, d = {nade['d']}, batch {record['config']['batch']}"
    caption = (
        f"Medians and quartiles over {record['config']['rounds']} rounds. Of the ceiling: "
        f"{top['flops'] / 1e9:.0f} Gflop/s in a product, {top['bytes'] / 1e9:.1f} GB/s in a copy, measured in this "
        "run. Bytes are those that the operations touch; above 100 %, caches served them."
    )
    columns = ("implementation", "time", "× kernel", "Gflop, of ceiling", "GB, of ceiling", "memory")
    return _table(title, caption, columns, [_rival(r) for r in nade["rivals"]])


def _rival(r: Record) -> Sequence[str]:
    flops = f"{r['flops'] / 1e9:.2f}, {r['fraction_of_flops']:.1%}"
    traffic = f"{r['bytes'] / 1e9:.2f}, {r['fraction_of_bytes']:.1%}"
    return [r["name"], seconds_as_text(r["seconds"]["median"]), _spread(r["ratio"]), flops, traffic, _bytes(r)]


def _precision(record: Record) -> Table:
    p = record["precision"]
    title = f"{p['model']}, n = {p['n']}, d = {p['d']}: a training step in mixed precision"
    has = ", ".join(p["instructions"])
    amx = "has" if any(word.startswith("amx") for word in p["instructions"]) else "has no"
    caption = f"This processor {amx} AMX ({has}). NLL in nats of the same weights on {p['images']:,} images."
    rows = [
        [
            key,
            seconds_as_text(p["seconds"][key]["median"]),
            f"{p['nll'][key]:.3f}",
            f"{p['nll'][key] - p['nll']['float32']:+.5f}",
        ]
        for key in p["seconds"]
    ]
    rows[-1].append(_spread(p["speedup"]))
    return _table(title, caption, ("precision", "time", "NLL", "difference", "speed-up"), rows)


def _lightning(record: Record) -> Table:
    part = record["lightning"]
    caption = (
        "With validation, schedule, CSV log and checkpoints on Lightning's side; the bare loop trains and validates."
    )
    rows = [[key, seconds_as_text(part["seconds"][key]["median"])] for key in part["seconds"]]
    rows[0].append(_spread(part["ratio"]))
    return _table(f"An epoch of FVSBN, {part['images']:,} images", caption, ("loop", "time", "ratio"), rows)


def _growth(record: Record) -> Table:
    fits = record["growth"]["fits"]
    lines = ["Exponents on the upper half of the range; claim: what the text says of the parameters."]
    lines += [f"{f['model']}, {f['against']}: {f['remark']}" for f in fits if f["remark"]]
    columns = ("model", "against", "claim", "parameters", "time", "memory")
    return _table("Growth of a training step", "\n".join(lines), columns, [_fit(f) for f in fits], left=3)


def _fit(f: Record) -> Sequence[str]:
    exponents = [f["exponents"].get(key) for key in ("parameters", "seconds", "memory")]
    return [f["model"], f["against"], f["claim"], *("" if e is None else _power(f, e) for e in exponents)]


def _power(f: Record, exponent: float) -> str:
    return f"{f['base']}^({exponent:.2f} {f['against']})" if f["base"] else f"{f['against']}^{exponent:.2f}"


def _targets(record: Record) -> Table:
    rows = [
        [t["what"], t["target"], f"{_spread(t['measured'])} {t['unit']}", VERDICTS[t["met"]]] for t in record["targets"]
    ]
    return _table("Figures to reach", _reservations(record), ("what", "target", "measured", ""), rows)


def _reservations(record: Record) -> str:
    others = record["others_share"]
    if others is not None and others >= QUIET:
        return (
            f"No verdict: other processes took {others:.0%} of the processor, and threads that wait for each "
            "other lose far more than that. Run it again on a quiet machine."
        )
    return "" if all(t["met"] is not None for t in record["targets"]) else "–: measured at another size, or on a GPU."


VERDICTS = {True: "met", False: "[bold]not met[/bold]", None: "–"}


def _d(m: Record) -> str:
    return "" if m["d"] is None else str(m["d"])


def _spread(s: Record) -> str:
    """Median and quartiles."""
    if s["low"] == s["high"]:
        return f"{s['median']:.3g}"
    return f"{s['median']:.3g} ({s['low']:.3g}–{s['high']:.3g})"


def seconds_as_text(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"


def _bytes(m: Record) -> str:
    return f"{m['memory'] / 1e6:.1f} MB" if "memory" in m else ""
