"""The charts of one test set: learning curves, what a number costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from chainrule.reporting.report.charts import Chart, Curve, Scale, draw
from chainrule.reporting.report.gather import Run
from chainrule.reporting.tables import Record
from chainrule.reporting.tables.words import nats

HUES = 7  # colours and marks that can be told apart; whatever comes after them is gray
HEAD = 0.15  # the share of the epochs that may lie above a chart

Named = Sequence[tuple[str, Run]]  # runs with the label of their row
Styles = Mapping[str, int]


def styles(labels: Iterable[str]) -> dict[str, int]:
    """A colour and a mark for each label, in their order; the last one for all that are too many."""
    return {label: min(k, HUES) for k, label in enumerate(dict.fromkeys(labels))}


def learning_curves(runs: Named, style: Styles) -> Chart | None:
    seen: set[str] = set()
    curves = []
    for label, run in _gray_first(runs, style):
        name = "" if label in seen or style[label] == HUES or not run.valid else label
        seen.add(name)
        curves += _of_run(label, name, run, style[label])
    return draw("Learning curves", curves, Scale("epoch", whole=True), Scale("NLL, nats per image", top=_top(curves)))


def _of_run(label: str, name: str, run: Run, style: int) -> list[Curve]:
    best = run.record.raw.get("best_epoch")
    selected = [p for p in run.valid if isinstance(best, int) and p[0] == best + 1]
    title = f"{label}, seed {run.record.seed}"
    if style == HUES:
        return [Curve(run.valid, style, title=f"{title}: validation")]
    return [
        Curve(run.train, style, title=f"{title}: training", dashed=True),
        Curve(run.valid, style, name, f"{title}: validation", marks=selected),
    ]


def _gray_first(runs: Named, style: Styles) -> Named:
    """In the order in which they are drawn: what has a colour of its own lies on top."""
    return sorted(runs, key=lambda entry: style[entry[0]] != HUES)


def _top(curves: Sequence[Curve]) -> float | None:
    """What every curve is below after the first few epochs, which would otherwise flatten all that follows."""
    after = [_after_head(curve.points) for curve in curves]
    return max((y for points in after for _, y in points), default=None)


def _after_head(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    return points[min(max(1, math.ceil(HEAD * len(points))), max(len(points) - 1, 0)) :]


def nll_against(
    runs: Named, style: Styles, title: str, x: Scale, value: Callable[[Record], float | None]
) -> Chart | None:
    """Test NLL of every run, with its standard error over the images, against what it costs."""
    seen: set[str] = set()
    curves = []
    for label, run in _gray_first(runs, style):
        cost, test = value(run.record), run.record.nll["test"]
        if cost is None:
            continue
        name = "" if label in seen or style[label] == HUES else label
        seen.add(name)
        said = f"{label}, seed {run.record.seed}: {nats(test.mean)} ± {nats(test.stderr, test.mean)} nats"
        points = [(cost, test.mean)]
        curves.append(Curve(points, style[label], name, said, line=False, marks=points, errors=[test.stderr]))
    return draw(title, curves, x, Scale("test NLL, nats per image"))
