"""``chainrule report``: everything that finished runs say, as one HTML file that needs no network. Knows no torch."""

from __future__ import annotations

import base64
import csv
import io
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped, unused-ignore]
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from chainrule.files import read_small, write_whole
from chainrule.reporting import charts
from chainrule.reporting.format import nats, three_digits
from chainrule.reporting.growth import growth_figure
from chainrule.reporting.tables import Section, check_published, left_out, make_grid, sections
from chainrule.runs import nll
from chainrule.runs.certificate import Verdict
from chainrule.runs.directory import RunDir, discover
from chainrule.runs.record import Record, read_json

log = logging.getLogger(__name__)

COLUMNS = ("nll", "published", "bits", "parameters", "minutes", "certified", "seeds")
COSTS = {"parameters": "parameters", "minutes": "minutes of training"}


@dataclass(frozen=True)
class Run:
    """A finished run, and what lies beside its record."""

    record: Record
    verdict: Verdict | None
    label: str  # of its row
    name: str
    best: bool  # of its row, by validation NLL
    train: charts.Points  # (epoch, nats): mean over the epoch, while the weights were changing
    valid: charts.Points
    samples: bytes | None  # a PNG
    completions: bytes | None
    pixels: NDArray[np.float64] | None  # (height, width): mean nats of each pixel over the test images


@dataclass(frozen=True)
class Chart:
    """A figure, and what is to be said about it."""

    name: str  # of its files
    title: str
    figure: Figure
    caption: str


def write_report(
    runs: Sequence[Path | str] | Path | str,
    out: Path | str = "report.html",
    bench: Path | str | None = "auto",
    published: bool | str = True,
    figures: Path | str | None = None,
) -> list[Path]:
    """Writes everything about the runs under some folders into one file.

    Args:
        runs: run directories, or folders that contain some.
        out: the file, ending in ``.html``.
        bench: a ``bench.json``, whose growth is drawn; ``auto`` for one among the runs or in docs/, ``none`` for none.
        published: which published numbers stand beside ours, as in :func:`chainrule.reporting.tables.tabulate`.
        figures: a folder for all charts, samples and completions as PDF and SVG in the width of a paper's column.

    Returns:
        The files that were written.

    Raises:
        ValueError: ``out`` is no HTML file, there is no run, a record cannot be read, or ``bench`` is none.
        OSError: a file cannot be written.
    """
    file = Path(str(out)).expanduser()
    if file.suffix != ".html":
        raise ValueError(f"out must end in .html, got {out}")
    check_published(published)
    tops = [Path(run).expanduser() for run in ([runs] if isinstance(runs, str | Path) else runs)]
    records, unfinished = discover(tops)
    if not records and not unfinished:
        raise ValueError(f"no run found in {', '.join(map(str, tops))}: give run directories, or a folder of them")
    found = sections([r for r in records if r.complete], published)
    parts = [(section, section_runs(section, tops)) for section in found]
    with charts.styled():
        drawn = [section_charts(section, of_section) for section, of_section in parts]
        growth = read_growth(bench, tops)
    page = _environment(tops).get_template("report.html.j2").render(
        parts=[
            (section, make_grid(section, published, COLUMNS), of_section, some)
            for (section, of_section), some in zip(parts, drawn, strict=True)
        ],
        growth=growth,
        left_out=left_out([r for r in records if not r.complete], _named(unfinished)),
        now=datetime.now(UTC),
    )  # fmt: skip
    write_whole(file, page.encode(errors="replace"))
    if figures is None:
        return [file]
    printed = {
        f"{_slug(section)}-{chart.name}": chart.figure
        for (section, _), some in zip(parts, drawn, strict=True)
        for chart in some
    }
    with charts.styled():
        for section, of_section in parts:
            for kind in ("samples", "completions"):
                pictures = [(run.label, _gray(png)) for run in of_section if run.best and (png := getattr(run, kind))]
                if figure := charts.side_by_side(pictures):
                    printed[f"{_slug(section)}-{kind}"] = figure
    printed |= {"growth": growth} if growth else {}
    return [file, *charts.save(printed, Path(figures).expanduser())]


def _named(runs: Iterable[RunDir]) -> list[RunDir]:
    return sorted(runs, key=lambda run: run.path)


def _slug(section: Section) -> str:
    return section.name.replace(" ", "-").replace("×", "x")


def _environment(tops: Sequence[Path]) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "nats": nats,
        "three_digits": three_digits,
        "svg": charts.svg,
        "png": lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}",
        "yaml": lambda config: str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True)).strip(),
        "clean": lambda text: _without_places(text, tops),
    }
    return environment


def _without_places(text: str, tops: Sequence[Path]) -> str:
    """A line without where the runs lie on this machine: a report is handed around."""
    for top in tops:
        text = text.replace(f"{top.resolve()}/", "").replace(str(top.resolve()), top.resolve().name)
    return text.replace(str(Path.home()), "~")


# ---- what a run directory has to show; any of it may be absent ------------------------------------------


def section_runs(section: Section, tops: Sequence[Path]) -> list[Run]:
    """The runs of a test set, in the order of the table."""
    return [
        _read_run(record, said, label, record is row.best, tops)
        for label, row in zip(section.labels, section.rows, strict=True)
        for record, said in zip(row.records, row.verdicts, strict=True)
    ]


def _read_run(record: Record, said: Verdict | None, label: str, best: bool, tops: Sequence[Path]) -> Run:
    folder = record.path.resolve()
    top = next(
        (t.resolve() for t in tops if folder != t.resolve() and folder.is_relative_to(t.resolve())), folder.parent
    )
    rows = read_metrics(folder / "metrics.csv")
    try:
        pixels = nll.read_array(folder, "pixels").reshape(record.data.size) if (folder / nll.FILE).is_file() else None
    except ValueError:  # an early run, or no images
        pixels = None
    return Run(
        record=record,
        verdict=said,
        label=label,
        name=folder.relative_to(top).as_posix(),
        best=best,
        train=curve(rows, "train/nll"),
        valid=curve(rows, "val/nll"),
        samples=read_picture(folder / "samples.png"),
        completions=read_picture(folder / "completions.png"),
        pixels=pixels,
    )


def read_metrics(file: Path) -> list[dict[str, str]]:
    """The lines of a metrics.csv; none where there is no such file."""
    try:
        text = read_small(file).decode(errors="replace")
    except (OSError, ValueError):
        return []
    return list(csv.DictReader(io.StringIO(text.replace("\0", ""))))


def curve(rows: Sequence[dict[str, str]], column: str) -> charts.Points:
    """(epoch, nats): the last finite value of every epoch, counted from 1."""
    found = {}
    for row in rows:
        epoch, value = _number(row.get("epoch")), _number(row.get(column))
        if math.isfinite(epoch + value):
            found[epoch + 1] = value
    return sorted(found.items())


def _number(text: object) -> float:
    try:
        return float(text) if isinstance(text, str) else math.nan
    except ValueError:  # a line that was cut off when the run was stopped
        return math.nan


def read_picture(file: Path) -> bytes | None:
    """A PNG as it is; None where it is absent or damaged."""
    try:
        content = read_small(file)
        _gray(content)
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        log.warning("%s is left out: %s", file, error)
        return None
    return content


def _gray(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image.convert("L"))


def read_growth(bench: Path | str | None, tops: Sequence[Path]) -> Figure | None:
    """The growth that a benchmark has measured.

    Raises:
        ValueError: the file has none.
    """
    at_hand = [*sorted(file for top in tops for file in top.glob("bench-*/bench.json"))[-1:], Path("docs/bench.json")]
    file = next((f for f in at_hand if f.is_file()), None) if str(bench) == "auto" else bench
    if file is None or str(file) in ("none", "null"):
        return None
    try:
        content: Any = read_json(Path(file).expanduser())
        return growth_figure(content) if content["growth"]["points"] else None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        if str(bench) == "auto":
            return None
        raise ValueError(f"{file} holds no growth that `chainrule bench` measured; bench=none does without") from error


# ---- figures --------------------------------------------------------------------------------------------


def section_charts(section: Section, runs: Sequence[Run]) -> list[Chart]:
    """The charts of a test set that have something to show."""
    curves = [(run.label, run.train, run.valid, (run.record.best_epoch or 0) + 1) for run in runs]
    costs: dict[str, list[tuple[str, float | None, float, float]]] = {
        "parameters": [(run.label, run.record.parameters.count, *_test(run)) for run in runs],
        "minutes": [(run.label, (run.record.seconds or 0) / 60, *_test(run)) for run in runs],
    }
    maps = [(run.label, run.pixels) for run in runs if run.best and run.pixels is not None]
    drawn = [
        ("learning-curves", "Learning curves", charts.learning_curves(curves),
         "Solid: validation images; dotted: training images, while the weights change. A mark: the epoch selected."),
        *((f"nll-{name}", f"NLL against {axis}", charts.nll_against(costs[name], axis),
           "A mark for each seed, with the standard error over the test images.") for name, axis in COSTS.items()),
        ("nats-per-pixel", "Nats per pixel", charts.pixel_maps(maps),
         "What each pixel costs given all before it: means over the test images, which add up to the NLL."),
    ]  # fmt: skip
    return [Chart(name, title, figure, caption) for name, title, figure, caption in drawn if figure]


def _test(run: Run) -> tuple[float, float]:
    return run.record.test.mean, run.record.test.stderr
