"""All checks of a run, and the certificate that they passed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table

from chainrule.evaluation import scoring
from chainrule.evaluation.certify.causality import causality
from chainrule.evaluation.certify.coding import lossless
from chainrule.evaluation.certify.context import CheckFailed, Context, Figures, NotApplicable
from chainrule.evaluation.certify.implementations import implementations
from chainrule.evaluation.certify.normalization import normalization
from chainrule.evaluation.certify.reevaluation import members, reevaluation
from chainrule.evaluation.certify.sampling import sampling
from chainrule.evaluation.certify.table import table
from chainrule.runs.certificate import SCHEMA, Certificate, file_sha256, record_sha256, suspicion
from chainrule.runs.directory import RunDir, load_config, open_run
from chainrule.runs.load import checkpoint_sha256, device_named, load_model
from chainrule.runs.nll import read_array
from chainrule.runs.provenance import provenance
from chainrule.runs.record import Record
from chainrule.runs.settings import check

log = logging.getLogger(__name__)

# What a density and images are enough for, cheapest first. The names are those in certificates, old and new.
CHECKS: dict[str, Callable[[Context], Figures]] = {
    "causality": causality,
    "normalization": normalization,
    "implementations": implementations,
    "coding": lossless,
    "honesty": sampling,
}


def certify(cfg: DictConfig, show: Callable[[Table], object]) -> bool:
    """Checks a finished run, shows what was found, and writes ``certificate.json``, whether it passed or not.

    Args:
        cfg: the composed configuration of ``conf/certify.yaml``.
        show: prints a table.

    Returns:
        Whether every check passed that applies.

    Raises:
        ValueError: the configuration cannot work, a file of the run is damaged, or the checkpoint is not the record's.
        OSError: the run is not finished, or images cannot be found, or the certificate not be written.
    """
    check(cfg)
    run = open_run(cfg.run)
    if not run.record.is_file():
        raise FileNotFoundError(f"{run.path} has no result.json: only a finished run has a number to certify")
    record, hashes = Record.read(run.path), _hashes(run)
    if record.checkpoint_sha256 and record.checkpoint_sha256 != hashes["checkpoint"]:
        raise ValueError(
            f"{run.path}: the checkpoint is not the record's (SHA-256 {hashes['checkpoint'][:12]}…, the record says "
            f"{record.checkpoint_sha256[:12]}…). Put back the checkpoint that was scored, or train again"
        )
    config = load_config(run)
    data = scoring.load_data(cfg, config.data)
    density = load_model(run.path, device_named(cfg.device), cfg.trust)
    nll = torch.from_numpy(read_array(run.path))
    context = Context(density, data.test, nll, n=cfg.n, k=cfg.k, seed=cfg.seed)
    checks = {"recomputation": partial(reevaluation, context, run, record, data)}
    if len(nll) == len(data.test):  # else there is no telling which image is which
        checks = {name: partial(check, context) for name, check in CHECKS.items()} | checks
    if config.get("members") and not config.get("orders"):  # of one network all is checked here, in each order
        checks["members"] = partial(members, run)
    found = outcomes(checks)
    made = provenance()
    certificate = {
        "schema": SCHEMA,
        "sha256": hashes,
        "test_nll": record.test.mean,
        **made,
        "versions": made["versions"] | {"constriction": version("constriction")},
        "settings": {"n": cfg.n, "k": cfg.k, "seed": cfg.seed, "device": cfg.device},
        **found,
    }
    try:
        show(table(certificate, suspicion(record)))
    finally:
        Certificate.model_validate(certificate).write(run.path)
    return bool(found["passed"])


def _hashes(run: RunDir) -> dict[str, str]:
    found = {"nll_test": file_sha256(run.nll_test), "config": file_sha256(run.config)}
    hashes = {"record": record_sha256(run.path), **found, "checkpoint": checkpoint_sha256(run)}
    if not hashes["nll_test"]:
        raise FileNotFoundError(f"{run.nll_test} is missing: without the NLL of each image there is nothing to compare")
    return hashes  # type: ignore[return-value]


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
    except CheckFailed as failed:
        said = {"passed": False, "counterexample": str(failed), **failed.figures}
    except NotApplicable as reason:
        said = {"passed": None, "not_applicable": str(reason)}
    return {**{key: _json(value) for key, value in said.items()}, "seconds": time.perf_counter() - started}


def _json(value: object) -> object:
    """JSON has no nan and no infinity, which a counterexample may be."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
