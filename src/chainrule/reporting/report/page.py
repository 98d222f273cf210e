"""The page: what ``parts`` and ``figures`` have found, in the order in which it is read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml  # type: ignore[import-untyped, unused-ignore]
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chainrule.files import write_whole
from chainrule.reporting import tables
from chainrule.reporting.report import figures, growth
from chainrule.reporting.report.charts import Chart
from chainrule.reporting.report.gather import name_below
from chainrule.reporting.report.growth import Bench, read_bench
from chainrule.reporting.report.maps import color_bar
from chainrule.reporting.report.parts import make_part, row_labels
from chainrule.reporting.report.private import public, rerun, without_places
from chainrule.reporting.tables.formats import PUBLISHED
from chainrule.reporting.tables.words import nats, three_digits

HERE = Path(__file__).resolve().parent


def write_report(
    runs: Sequence[Path | str] | Path | str,
    out: Path | str = "report.html",
    bench: Path | str | None = "auto",
    published: bool | str = True,
) -> Path:
    """Writes everything about the runs under some folders into one file, and returns its path.

    Args:
        runs: run directories, or folders that contain some.
        out: the file, ending in ``.html``.
        bench: a ``bench.json``, whose growth is drawn; ``auto`` for one that is at hand, ``none`` for none.
        published: which published numbers stand beside ours, as in :func:`chainrule.reporting.tables.tabulate`.

    Raises:
        ValueError: ``out`` is no HTML file, there is no run, a record cannot be read, or ``bench`` is none.
        OSError: the file cannot be written.
    """
    file = Path(out).expanduser()
    if file.suffix != ".html":
        raise ValueError(f"out must end in .html, got {out}")
    if published not in PUBLISHED:
        raise ValueError(f"published must be true, false, verified or all, got {published!r}")
    tops = [Path(run).expanduser() for run in ([runs] if isinstance(runs, str | Path) else runs)]
    write_whole(file, render(tops, read_bench(bench, tops), published).encode(errors="replace"))
    return file


def render(tops: Sequence[Path], bench: Bench | None, published: bool | str) -> str:
    """The page as text; see :func:`write_report`."""
    records, unfinished = tables.find(tops)
    if not records and not unfinished:
        raise ValueError(f"no run found in {', '.join(map(str, tops))}: give run directories, or a folder of them")
    sections = tables.sections(records, published)
    labels = [label for section in sections for label in row_labels(section)]
    models = growth.models(bench) if bench else []
    style = figures.styles([*labels, *models])
    parts = [make_part(section, tops, style, published) for section in sections]
    script = _own("report.js")
    return _environment().get_template("report.html.j2").render(
        parts=parts,
        finished=sum(len(part.runs) for part in parts),
        style=style,
        unfinished=_unfinished(unfinished, tops),
        growth=_growth(bench, models, style),
        claims=growth.claims(bench) if bench else "",
        machine=growth.machine(bench) if bench else "",
        color_bar=color_bar(),
        css=_own("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        now=datetime.now(UTC),
    )  # fmt: skip


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "nats": nats,
        "three_digits": three_digits,
        "config": _config,
        "rerun": rerun,
        "clean": without_places,
    }
    return environment


def _config(record: tables.Record) -> str:
    return str(yaml.safe_dump(public(record.raw["config"]), sort_keys=False, allow_unicode=True)).strip()


def _unfinished(folders: Iterable[Path], tops: Sequence[Path]) -> list[tuple[str, str, str]]:
    """Name, standing and reason of what has no record; those that say why come first."""
    found = [(name_below(path, tops), tables.standing(path), without_places(tables.failure(path))) for path in folders]
    return sorted(found, key=lambda entry: (not entry[2], entry[0]))


def _growth(bench: Bench | None, models: Sequence[str], style: figures.Styles) -> list[Chart]:
    """With the colours of the rows, as long as there are enough of them."""
    crowded = any(style[model] == figures.HUES for model in models)
    return growth.charts(bench, figures.styles(models) if crowded else style) if bench else []
