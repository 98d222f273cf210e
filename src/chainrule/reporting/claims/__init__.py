"""What the text says of its four models, measured on finished runs.

``measuring`` makes figures of runs, ``verdicts`` judges by rules that are written down, ``show`` makes text of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from chainrule.bench.clock import Clock
from chainrule.bench.machine import QUIET, Others
from chainrule.files import write_whole
from chainrule.reporting import tables
from chainrule.reporting.claims.figures import Place
from chainrule.reporting.claims.formulas import FORMULAS
from chainrule.reporting.claims.measuring import measure_place
from chainrule.reporting.claims.show import FORMATS, render
from chainrule.reporting.claims.verdicts import Judgement, judge
from chainrule.runs.provenance import provenance
from chainrule.runs.record import write_json

SCHEMA = 1  # of claims.json
CLOCK = Clock(rounds=3, seconds=0.5)  # n full passes of a large model take seconds


def claims(cfg: DictConfig) -> str:
    """Measures, judges, writes ``claims.json`` and ``claims.md``, and returns the same as text.

    Args:
        cfg: the composed configuration of ``conf/claims.yaml``.

    Raises:
        ValueError: there is no run of these models, a path or an option cannot work, or the images have changed.
        OSError: images or checkpoints cannot be found, or files not be written.
    """
    out = _check(cfg)
    records = _records(cfg)
    others = Others()
    places = [measure_place(section, cfg, CLOCK) for section in tables.sections(records, published=False)]
    places.sort(key=lambda place: (place.n, place.data))
    judgements, share = judge(places), others.share() or 0.0
    disturbed = share if share >= QUIET else 0.0
    write_json(out, _content(places, judgements, share))
    write_whole(out.with_suffix(".md"), f"{render(places, judgements, 'markdown', disturbed)}\n".encode())
    return render(places, judgements, cfg.format, disturbed)


def _check(cfg: DictConfig) -> Path:
    if cfg.format not in FORMATS:
        raise ValueError(f"unknown format {cfg.format!r}: choose one of {', '.join(FORMATS)}")
    out = Path(cfg.out).expanduser()
    if out.suffix != ".json":
        raise ValueError(f"out must end in .json, got {cfg.out}")
    return out


def _records(cfg: DictConfig) -> list[tables.Record]:
    found, _ = tables.find(cfg.runs if isinstance(cfg.runs, str) else list(cfg.runs))
    records = [record for record in found if record.model in FORMULAS]
    if not records:
        raise ValueError(f"no finished run of {', '.join(FORMULAS)} in {cfg.runs}: scripts/claims trains them")
    return records


def _content(places: Sequence[Place], judgements: Sequence[Judgement], share: float) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        **provenance(),
        "others_share": share,
        "places": [_place(place) for place in places],
        "claims": [asdict(judgement) for judgement in judgements],
    }


def _place(place: Place) -> dict[str, Any]:
    content = asdict(place)
    for figures in content["figures"]:
        del figures["nll"]  # of each image: the run has it
    return content
