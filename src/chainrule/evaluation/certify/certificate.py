"""All checks of a run, and the certificate that they passed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

from omegaconf import DictConfig

from chainrule.evaluation import scoring
from chainrule.evaluation.certify.causality import causality
from chainrule.evaluation.certify.honesty import honesty
from chainrule.evaluation.certify.implementations import implementations
from chainrule.evaluation.certify.lossless import lossless
from chainrule.evaluation.certify.normalization import normalization
from chainrule.evaluation.certify.recomputation import members, recomputation
from chainrule.evaluation.certify.subject import Figures, NotApplicable, Refuted, Subject
from chainrule.reporting import tables
from chainrule.reporting.tables.fields import read_json
from chainrule.runs.directory import RunDir, load_config, open_run
from chainrule.runs.load import checkpoint_sha256, device_named, load_model
from chainrule.runs.provenance import provenance
from chainrule.runs.record import write_json
from chainrule.runs.settings import check

log = logging.getLogger(__name__)

SCHEMA = 1
# What a density and images are enough for, cheapest first.
CHECKS: dict[str, Callable[[Subject], Figures]] = {
    "causality": causality,
    "normalization": normalization,
    "implementations": implementations,
    "coding": lossless,
    "honesty": honesty,
}


def certify(cfg: DictConfig) -> dict[str, Any]:
    """Checks a finished run and writes ``certificate.json``, whether it passed or not.

    Args:
        cfg: the composed configuration of ``conf/certify.yaml``.

    Returns:
        The certificate, as it was written.

    Raises:
        ValueError: the configuration cannot work, or a file of the run is damaged.
        OSError: the run is not finished, or images cannot be found, or the certificate not be written.
    """
    check(cfg)
    run = open_run(cfg.run)
    if not run.record.is_file():
        raise FileNotFoundError(f"{run.path} has no result.json: only a finished run has a number to certify")
    record = tables.parse(read_json(run.record), run.record)
    config = load_config(run)
    data = scoring.load_data(cfg, config.data)
    density = load_model(run.path, device_named(cfg.device))
    subject = Subject(density, data.test, n=cfg.n, k=cfg.k, seed=cfg.seed)
    checks = {name: partial(check, subject) for name, check in CHECKS.items()}
    checks["recomputation"] = partial(recomputation, subject, run, record, data)
    if config.get("members"):
        checks["members"] = partial(members, run)
    certificate = {**_head(run, record, cfg), **outcomes(checks)}
    write_json(run.certificate, certificate)
    return certificate


def outcomes(checks: Mapping[str, Callable[[], Figures]]) -> dict[str, Any]:
    """Runs every check, whatever the others say: ``passed``, ``seconds``, and ``checks`` by name."""
    started = time.perf_counter()
    found = {name: outcome(name, check) for name, check in checks.items()}
    passed = all(check["passed"] is not False for check in found.values())
    return {"passed": passed, "seconds": time.perf_counter() - started, "checks": found}


def outcome(name: str, check: Callable[[], Figures]) -> dict[str, Any]:
    """One check: ``passed`` is true, false, or null where it does not apply; then its seconds and figures."""
    log.info("%s …", name)
    started = time.perf_counter()
    try:
        said: dict[str, Any] = {"passed": True, **check()}
    except Refuted as refuted:
        said = {"passed": False, "counterexample": str(refuted), **refuted.figures}
    except NotApplicable as reason:
        said = {"passed": None, "not_applicable": str(reason)}
    return {**{key: _json(value) for key, value in said.items()}, "seconds": time.perf_counter() - started}


def _json(value: object) -> object:
    """JSON has no nan and no infinity, which a counterexample may be."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _head(run: RunDir, record: tables.Record, cfg: DictConfig) -> dict[str, Any]:
    made = provenance()
    return {
        "schema": SCHEMA,
        "checkpoint_sha256": checkpoint_sha256(run),
        "test_nll": record.nll["test"].mean,
        **made,
        "versions": made["versions"] | {"constriction": version("constriction")},
        "settings": {"n": cfg.n, "k": cfg.k, "seed": cfg.seed, "device": cfg.device},
    }
