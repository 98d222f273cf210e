"""Charts as coordinates: lines, marks, ticks and labels in the units of an SVG, for the template to draw."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

WIDTH, HEIGHT = 400.0, 270.0
LEFT, TOP, BOTTOM = 44.0, 34.0, 42.0
LETTER, LINE = 7.2, 14.0  # the width of a letter of a label and the height of a line, roughly
RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹·⁻ⁿᵈ"
LONGEST = 22  # letters of a label
STEPS = (1, 2, 5)
LEAST = 5.0  # what a logarithmic axis spans at least, as a factor
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Curve:
    """A line, a cloud of marks, or a line with marks on it."""

    points: Sequence[tuple[float, float]]
    style: int = 0
    label: str = ""  # beside its end
    title: str = ""  # what a pointer that rests on it is told
    line: bool = True
    dashed: bool = False
    marks: Sequence[tuple[float, float]] = ()
    errors: Sequence[float] = ()  # of the marks, up and down


@dataclass(frozen=True)
class Scale:
    """What an axis says: its variable with the unit, and whether equal steps are equal factors."""

    name: str
    log: bool = False
    whole: bool = False  # only whole numbers have a meaning
    top: float | None = None  # cut off above


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` on a stretch from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        low, high, v = ((math.log10(a) if self.log else a) for a in (self.low, self.high, value))
        return round(self.start + (v - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        values = _decades(self.low, self.high) if self.log else _even(self.low, self.high, self.whole)
        return [(self.place(v), short(v)) for v in values]


@dataclass(frozen=True)
class Line:
    path: str
    style: int
    dashed: bool
    title: str


@dataclass(frozen=True)
class Mark:
    x: float
    y: float
    style: int
    title: str
    bar: tuple[float, float] | None


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    text: str
    style: int
    anchor: str

    def box(self) -> tuple[float, float, float, float]:
        wide = _width(self.text)
        left = {"start": self.x, "end": self.x - wide, "middle": self.x - wide / 2}[self.anchor]
        return left, self.y - LINE / 2, left + wide, self.y + LINE / 2


@dataclass(frozen=True)
class Chart:
    """Everything that the template draws."""

    title: str
    x: Scale
    y: Scale
    frame: tuple[float, float, float, float]  # left, top, right, bottom
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    marks: list[Mark]
    labels: list[Label]
    width: float = WIDTH
    height: float = HEIGHT


def draw(title: str, curves: Sequence[Curve], x: Scale, y: Scale) -> Chart | None:
    """Lays a chart out; None where there is nothing to draw."""
    curves = [kept for curve in curves if (kept := _drawable(curve, x, y)).points]
    if not curves:
        return None
    right = WIDTH - 12 - max(_width(c.label) if c.line else 0 for c in curves)
    across = _axis([p[0] for c in curves for p in c.points], x, LEFT, right)
    up = _axis(list(_heights(curves)), y, HEIGHT - BOTTOM, TOP)
    marks = [mark for curve in curves for mark in _marks(curve, across, up)]
    return Chart(
        title=title,
        x=x,
        y=y,
        frame=(LEFT, TOP, right, HEIGHT - BOTTOM),
        x_ticks=across.ticks(),
        y_ticks=up.ticks(),
        lines=[_line(curve, across, up) for curve in curves if curve.line],
        marks=marks,
        labels=_labels(curves, marks, across, up),
    )


def _drawable(curve: Curve, x: Scale, y: Scale) -> Curve:
    def fits(value: float, scale: Scale) -> bool:
        return math.isfinite(value) and (value > 0 or not scale.log)

    points = [p for p in curve.points if fits(p[0], x) and fits(p[1], y)]
    marks = [p for p in curve.marks if p in points]
    return replace(curve, points=points, marks=marks, label=_shortened(curve.label))


def _shortened(label: str) -> str:
    """Values without their names where those are too long: the table has them in the same order."""
    short_label = label if len(label) <= LONGEST else re.sub(r"(?<= )[^ =]+=", "", label)
    return short_label if len(short_label) <= LONGEST else f"{short_label[: LONGEST - 1]}…"


def _width(label: str) -> float:
    """Raised digits are narrow."""
    return sum(0.6 * LETTER if c in RAISED else LETTER for c in label)


def _heights(curves: Iterable[Curve]) -> Iterator[float]:
    for curve in curves:
        yield from (p[1] for p in curve.points)
        for (_, y), error in zip(curve.marks, curve.errors, strict=False):
            yield from (y - error, y + error)


def _axis(values: Sequence[float], scale: Scale, start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    if scale.top is not None:
        high = max(low, min(high, scale.top))
    if scale.log:
        share = max((high / low) ** 0.06, (LEAST / (high / low)) ** 0.5, 1.1)
        return Axis(low / share, high * share, start, end, log=True)
    room = 0.06 * (high - low) or max(0.05 * abs(high), 0.5)
    return Axis(low - room, high + room, start, end, whole=scale.whole)


def _even(low: float, high: float, whole: bool) -> list[float]:
    """Up to seven round numbers at equal distances."""
    step = _round_step((high - low) / 6)
    step = max(step, 1) if whole else step
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(k * step, 10) for k in range(first, last + 1)]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= least * 0.999)


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, thinned out where there are many, and 2 and 5 times them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [10.0**k for k in powers if low <= 10.0**k <= high]
    if len(values) < 3:
        values = [s * 10.0**k for k in powers for s in STEPS if low <= s * 10.0**k <= high]
    return values[:: math.ceil(len(values) / 7)]


def short(value: float) -> str:
    """A number as it stands on an axis: 50k, 2M, 0.05."""
    for size, letter in UNITS:
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _line(curve: Curve, across: Axis, up: Axis) -> Line:
    path = "L".join(f"{across.place(x)} {up.place(y)}" for x, y in curve.points)
    return Line(f"M{path}", curve.style, curve.dashed, curve.title)


def _marks(curve: Curve, across: Axis, up: Axis) -> Iterator[Mark]:
    for k, (x, y) in enumerate(curve.marks):
        error = curve.errors[k] if k < len(curve.errors) else 0
        bar = (up.place(y - error), up.place(y + error)) if error and math.isfinite(error) else None
        yield Mark(across.place(x), up.place(y), curve.style, curve.title, bar)


def _labels(curves: Sequence[Curve], marks: Sequence[Mark], across: Axis, up: Axis) -> list[Label]:
    """One label for each curve that has one, the lowest first, none on another and none on a mark."""
    taken = [(m.x - 5, m.y - 5, m.x + 5, m.y + 5) for m in marks]
    labels: list[Label] = []
    named = [(up.place(c.points[-1][1]), across.place(c.points[-1][0]), c) for c in curves if c.label]
    for y, x, curve in sorted(named, key=lambda entry: entry[:2], reverse=True):
        places = _places(x, min(max(y, TOP), HEIGHT - BOTTOM), curve, across.end)
        free = (place for place in places if not any(_overlap(place.box(), box) for box in taken))
        if label := next(free, None):  # where all is taken, resting on the mark still tells the name
            labels.append(label)
            taken.append(label.box())
    return labels


def _places(x: float, y: float, curve: Curve, end: float) -> Iterator[Label]:
    """Where a label may stand, best places first; on the left only where no line comes from there, or ends early."""
    around = [(8.0, 0.0, "start")]
    if not curve.line or x < end - 40:
        around += [(-8, 0, "end"), (0, -13, "middle"), (0, 13, "middle")]
    around += [(8, lines * LINE, "start") for lines in (-1, 1, -2, 2)]
    for dx, dy, anchor in around:
        label = Label(x + dx, y + dy, curve.label, curve.style, anchor)
        left, top, right, bottom = label.box()
        if left >= LEFT and top >= TOP - 17 and right <= WIDTH and bottom <= HEIGHT - BOTTOM + LINE / 2:
            yield label


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
