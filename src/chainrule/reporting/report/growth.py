"""The growth that ``chainrule bench`` has measured, beside what the text says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainrule.reporting.report.charts import RAISED, Chart, Curve, Scale, draw
from chainrule.reporting.report.figures import Styles, styles
from chainrule.reporting.report.gather import Points

SUPERSCRIPTS = str.maketrans("0123456789.-nd", RAISED)

Bench = Mapping[str, Any]  # the contents of a bench.json


@dataclass(frozen=True)
class Panel:
    """A cost, measured in ``unit``, against n or d."""

    title: str
    against: str
    key: str
    name: str
    unit: float = 1


PANELS = (
    Panel("Parameters against pixels", "n", "parameters", "parameters"),
    Panel("Training step against pixels", "n", "seconds", "ms per step", 1e-3),
    Panel("Peak memory against pixels", "n", "memory", "MB", 1e6),
    Panel("Parameters against hidden units", "d", "parameters", "parameters"),
    Panel("Training step against hidden units", "d", "seconds", "ms per step", 1e-3),
)
VARIABLES = {"n": "pixels n", "d": "hidden units d"}


def read_bench(bench: Path | str | None, tops: Sequence[Path]) -> Bench | None:
    """The record of a benchmark; see :func:`chainrule.reporting.report.write_report`.

    Raises:
        ValueError: the file has no measured growth.
        OSError: it cannot be read.
    """
    file = _at_hand(tops) if str(bench) == "auto" else bench
    if file is None or str(file) in ("none", "null"):
        return None
    try:
        content: Bench = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
        charts(content, styles(models(content)))
        claims(content), machine(content)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{file} holds no growth that `chainrule bench` measured; bench=none does without") from error
    return content


def _at_hand(tops: Sequence[Path]) -> Path | None:
    """The latest bench.json among the runs, else the one of the checkout."""
    latest = sorted(file for top in tops for file in top.glob("bench-*/bench.json"))[-1:]
    return next((file for file in [*latest, Path("docs/bench.json")] if file.is_file()), None)


def models(bench: Bench) -> list[str]:
    return list(dict.fromkeys(str(point["model"]) for point in bench["growth"]["points"]))


def claims(bench: Bench) -> str:
    """What the text says of the parameters of each model."""
    found = {str(fit["model"]): str(fit["claim"]) for fit in bench["growth"]["fits"]}
    return ", ".join(f"{claim} for {model}" for model, claim in found.items())


def machine(bench: Bench) -> str:
    """What it was measured on."""
    hardware = bench.get("hardware") or {}
    threads = f"{hardware['threads']} threads" if hardware.get("threads") else ""
    return ", ".join(str(part) for part in (hardware.get("gpu"), hardware.get("cpu"), threads) if part)


def charts(bench: Bench, style: Styles) -> list[Chart]:
    """Each cost of each model against n and d, with the growth that the text claims as a dashed line."""
    drawn = [_chart(bench, panel, style) for panel in PANELS]
    return [chart for chart in drawn if chart]


def _chart(bench: Bench, panel: Panel, style: Styles) -> Chart | None:
    curves = [curve for model in models(bench) for curve in _grown(bench["growth"], model, panel, style[model])]
    return draw(panel.title, curves, Scale(VARIABLES[panel.against], log=True), Scale(panel.name, log=True))


def _grown(growth: Mapping[str, Any], model: str, panel: Panel, style: int) -> list[Curve]:
    this = (model, panel.against)
    measured = [p for p in growth["points"] if (p["model"], p["against"]) == this and panel.key in p]
    points = [(float(p[panel.against]), _value(p[panel.key]) / panel.unit) for p in measured]
    if len(points) < 2:
        return []
    fit: Mapping[str, Any] = next((f for f in growth["fits"] if (f["model"], f["against"]) == this), {})
    claim = str(fit.get("claim", ""))
    name, title = f"{model} {_power(fit, panel)}".strip(), f"{model}, claimed to grow as {claim}"
    return [
        Curve(_claimed(claim, panel.against, points), style, title=title, dashed=True),
        Curve(points, style, name, title, marks=points),
    ]


def _value(measured: object) -> float:
    return float(measured["median"] if isinstance(measured, dict) else measured)  # type: ignore[arg-type]


def _power(fit: Mapping[str, Any], panel: Panel) -> str:
    """How fast the measured curve grows: n¹·³²."""
    exponent = fit.get("exponents", {}).get(panel.key)
    if exponent is None:
        return ""
    raised = f"{exponent:.2f}{panel.against if fit.get('base') else ''}".translate(SUPERSCRIPTS)
    return f"{fit.get('base') or panel.against}{raised}"


def _claimed(claim: str, against: str, points: Points) -> Points:
    """The claim as a curve that ends where the measurement ends."""
    power = 2 if f"{against}²" in claim else 1
    grown = [2.0**x if claim == "2ⁿ" else x**power for x, _ in points]
    lowest = min(y for _, y in points) / 2  # a claim that falls faster than the measurement leaves the chart
    scaled = [(x, points[-1][1] * g / grown[-1]) for (x, _), g in zip(points, grown, strict=True)]
    return [(x, y) for x, y in scaled if y >= lowest]
