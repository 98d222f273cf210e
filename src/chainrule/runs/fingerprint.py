"""What the numbers of a run depend on, as one SHA-256; and who may work in its directory."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from chainrule.files import write_whole
from chainrule.runs.directory import RunDir, in_use
from chainrule.runs.provenance import program
from chainrule.runs.record import Record
from chainrule.runs.settings import SECRETS, SILENT, without

MARK = "# fingerprint: "  # the first line of config.yaml
COMPUTE = ("torch", "numpy", "numba", "lightning", "torchmetrics")


def fingerprint(cfg: DictConfig) -> str:
    """SHA-256 of all that the numbers of a run depend on: the configuration without :data:`SILENT`, and the program."""
    config = without(SILENT, OmegaConf.to_container(cfg, resolve=True))
    return hashlib.sha256(f"{code_version()} {json.dumps(config, sort_keys=True)}".encode()).hexdigest()


@cache
def code_version() -> str:
    """SHA-256 of the program: all of this package's source, and the versions of the libraries that compute."""
    package = Path(__file__).resolve().parents[1]
    code = hashlib.sha256(" ".join(version(name) for name in COMPUTE).encode())
    for path in sorted(package.rglob("*.py")):
        code.update(f"\n{path.relative_to(package)}\n".encode() + path.read_bytes())
    return code.hexdigest()


def create(run: RunDir, cfg: DictConfig) -> None:
    """Writes ``config.yaml``, which makes a folder a run directory; its first line is the fingerprint.

    Raises:
        ValueError: the record that is to follow cannot name a library, since it is not installed.
    """
    program()
    if not run.config.exists():
        config = OmegaConf.create(without(SECRETS, OmegaConf.to_container(cfg, resolve=True)))
        write_whole(run.config, f"{MARK}{fingerprint(cfg)}\n{OmegaConf.to_yaml(config)}".encode())


def find_unfinished(folder: str | Path, fingerprint: str) -> Path | None:
    """The newest run directly below ``folder`` that has this fingerprint, no record, and nobody working on it."""
    found = [c for c in Path(folder).expanduser().glob("*/config.yaml") if stored_fingerprint(c) == fingerprint]
    newest_first = sorted(found, key=lambda config: config.stat().st_mtime, reverse=True)
    paths = (config.parent for config in newest_first if not RunDir(config.parent).record.exists())
    return next((path for path in paths if not in_use(path)), None)


def stored_fingerprint(config: Path) -> str | None:
    """The fingerprint in a ``config.yaml``; None: it has none."""
    with config.open(encoding="utf-8", errors="replace") as file:
        line = file.readline()
    return line.removeprefix(MARK).strip() if line.startswith(MARK) else None


def earlier(run: RunDir, cfg: DictConfig) -> Record | None:
    """The record of this very run, where it has finished; None: it has not, or has not even begun.

    Raises:
        ValueError: the directory holds another run, or (with ``resume=never``) any.
    """
    if not run.config.exists():
        return None
    if cfg.get("resume") == "never" or stored_fingerprint(run.config) != fingerprint(cfg):
        raise ValueError(
            f"{run.path} holds a run already, with other settings or of another version of the program (or "
            "resume=never): give this one another hydra.run.dir"
        )
    try:
        return Record.read(run.record) if run.record.exists() else None
    except ValueError as error:
        raise ValueError(f"{error}: remove the file, and the same command makes it again") from None
