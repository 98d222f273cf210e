"""What the numbers of a run depend on, as one SHA-256, and the run directory that it names.

It covers the configuration without what cannot change a number, the user's own image files, and the source that
computes: the modules that the model, the data, the optimizer and the training import, found by reading their files, and
the versions of the libraries beneath. A report, a table or another model is not among them.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from chainrule.files import file_sha256, write_whole
from chainrule.runs.directory import RunDir, is_own, load_config
from chainrule.runs.provenance import program
from chainrule.runs.record import Record
from chainrule.runs.settings import NEUTRAL, SECRETS, without

log = logging.getLogger(__name__)

MARK = "# fingerprint: "  # the first line of config.yaml
CHANGED = "# resumed although the code had changed"  # the second line, where that is so
COMPUTE = ("torch", "numpy", "numba", "lightning", "torchmetrics")

# Modules that compute in every run, whatever it trains; of the second kind, what they import does not.
OWN = "chainrule."
ALWAYS = ("chainrule.training.module", "chainrule.training.checkpoints")
ALONE = ("chainrule.training.train", "chainrule.evaluation.scoring")
# Modules that no number comes from, whoever imports them.
IDLE = re.compile(
    r"chainrule(\.(cli|bench|reporting|runs|evaluation|files|validate|training\.(wandb|sweep|search|train))\b.*)?$"
)


def fingerprint(cfg: DictConfig) -> str:
    """SHA-256 of all that the numbers of a run depend on."""
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("hydra", "logger")])
    config = _identified(without(NEUTRAL, OmegaConf.to_container(cfg, resolve=True)))
    return hashlib.sha256(f"{code_sha256(targets(cfg))} {json.dumps(config, sort_keys=True)}".encode()).hexdigest()


def _identified(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the SHA-256 of files in the place of their names: images, and weights to begin from."""
    if start := config.pop("ckpt_path", None):
        best = RunDir(Path(str(start)).expanduser()).best
        config["ckpt_path"] = file_sha256(best) if best.is_file() else start
    if members := config.get("members"):
        config["members"] = [member["sha256"] for member in members]
    data = config.get("data")
    if isinstance(data, dict):
        files = {key: Path(value).expanduser() for key, value in data.items() if isinstance(value, str)}
        config["data"] = data | {key: file_sha256(file) for key, file in files.items() if file.is_file()}
    return config


# ---- the code -----------------------------------------------------------------------------------------


def targets(cfg: DictConfig) -> tuple[str, ...]:
    """Everything that a configuration builds, apart from loggers: dotted names, sorted."""

    def walk(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (str(value) for key, value in node.items() if key == "_target_")
        for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from walk(value)

    ensemble = {"chainrule.mixture.OrderEnsemble"} if cfg.get("orders") else set()
    return tuple(sorted({*ensemble, *walk(without(NEUTRAL, OmegaConf.to_container(cfg, resolve=False)))}))


@cache
def code_sha256(built: tuple[str, ...]) -> str:
    """SHA-256 of the source that computes what these targets do, and of the versions of the libraries."""
    code = hashlib.sha256(" ".join(version(name) for name in COMPUTE).encode())
    for package in sorted({name.partition(".")[0] for name in built} - {*COMPUTE, "chainrule"}):
        with suppress(PackageNotFoundError):
            code.update(f"\n{package} {version(package)}".encode())
    for module, file in sorted(sources(built).items()):
        code.update(f"\n{module} {file_sha256(file)}".encode())
    return code.hexdigest()


@cache
def sources(built: tuple[str, ...]) -> dict[str, Path]:
    """The modules that compute what these targets do, and their files: of chainrule, and of the user's own."""
    found = {module: file for module in ALONE if (file := _file(module))}
    wanted = [*ALWAYS, *built]
    foreign: dict[str, bool] = {"chainrule": False}  # libraries are large: none is read to find what is in it
    while wanted:
        name = wanted.pop()
        top = name.partition(".")[0]
        if top not in foreign:
            foreign[top] = (origin := _file(top)) is not None and not is_own(origin)
        if foreign[top]:
            continue
        module, file = _located(name)
        if file is None or module in found or IDLE.match(module) or not (module.startswith(OWN) or is_own(file)):
            continue
        found[module] = file
        with suppress(SyntaxError):  # it is told when the module is imported
            wanted += _imports(ast.parse(file.read_bytes()), module, file)
    return found


def _imports(tree: ast.AST, module: str, file: Path) -> Iterator[str]:
    """What a module imports, at its top or in a function: dotted names of modules or of what is in them."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    if package and not module.startswith("chainrule."):
        yield package  # whose __init__ runs, too
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=base, names=names, level=level):
                base = resolve_name("." * level + (base or ""), package) if level else base
                yield from (f"{base}.{name.name}" if name.name != "*" else str(base) for name in names)
            case ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=str(name))]):
                yield name
            case ast.Call(
                func=ast.Name(id="import_module"), args=[ast.JoinedStr(values=[ast.Constant(value=name), _])]
            ):
                folder, _, stem = str(name).rpartition(".")
                for part in _folders(folder):
                    yield from (f"{folder}.{found.stem}" for found in sorted(Path(part).glob(f"{stem}*.py")))


def _located(name: str) -> tuple[str, Path | None]:
    """The module that a dotted name is, or is in; through a package that only hands it on, to where it is made."""
    module = name
    while (file := _file(module)) is None and "." in module:
        module = module.rpartition(".")[0]
    if file is not None and file.name == "__init__.py" and module != name:
        attribute = name.removeprefix(f"{module}.").partition(".")[0]
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.ImportFrom) and attribute in {alias.asname or alias.name for alias in node.names}:
                base = resolve_name("." * node.level + (node.module or ""), module) if node.level else node.module
                return _located(f"{base}.{attribute}")
    return module, file


def _file(module: str) -> Path | None:
    """The source of a module, found without importing it; None: it has none."""
    parent = module.rpartition(".")[0]
    folders = _folders(parent) if parent else None
    spec = PathFinder.find_spec(module, folders) if folders is None or folders else None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _folders(package: str) -> Sequence[str]:
    parent = package.rpartition(".")[0]
    folders = _folders(parent) if parent else None
    spec = PathFinder.find_spec(package, folders) if folders is None or folders else None
    return list(spec.submodule_search_locations or ()) if spec else []


# ---- the directory ------------------------------------------------------------------------------------


def model_name(cfg: DictConfig) -> str:
    """The configuration's choice of a model, ``model=nade``; without one, the module of its class."""
    return _choice(cfg, "model") or str(cfg.model._target_).split(".")[-2]


def data_name(cfg: DictConfig) -> str:
    """The configuration's choice of data, ``data=static``; without one, the name of its class."""
    return _choice(cfg, "data") or str(cfg.data._target_).split(".")[-1].lower()


def _choice(cfg: DictConfig, group: str) -> str | None:
    """Of a running command Hydra's, of a run directory the one in its ``config.yaml``."""
    choices = cfg.get("choices") or {}
    if not choices and (cfg.get("hydra") is not None or HydraConfig.initialized()):
        choices = (cfg.get("hydra") or HydraConfig.get()).runtime.choices
    return str(choices[group]).rpartition("/")[2] if choices.get(group) else None


def run_name(cfg: DictConfig, folder: str | Path) -> str:
    """The name of a run's directory: model, data, seed and fingerprint.

    With ``resume=never`` it has a number behind it that makes it new; with ``resume=force`` it is that of the newest
    run in ``folder`` that differs by its code only, where there is one.
    """
    sha256 = fingerprint(cfg)
    stem = re.sub(r"[^\w.=+-]+", "-", f"{model_name(cfg)}-{data_name(cfg)}-s{cfg.seed}-")
    name, top = f"{stem}{sha256[:8]}", Path(folder).expanduser()
    if cfg.get("resume") == "never":
        names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
        return next(name for name in names if not RunDir(top / name).config.exists())
    if cfg.get("resume") == "force" and not RunDir(top / name).config.exists():
        return next((old.path.name for old in _same_settings(top, stem, sha256)), name)
    return name


def _same_settings(folder: Path, stem: str, sha256: str) -> Iterator[RunDir]:
    """Runs with these settings, by other code, the newest first."""
    configs = sorted(folder.glob(f"{stem}*/config.yaml"), key=lambda file: file.stat().st_mtime, reverse=True)
    for run in (RunDir(config.parent) for config in configs):
        with suppress(ValueError, OSError):
            if fingerprint(load_config(run)) == sha256 != stored_fingerprint(run):
                yield run


def create(run: RunDir, cfg: DictConfig, *, code_changed: bool = False) -> None:
    """Writes ``config.yaml``, which makes a folder a run directory; its first line is the fingerprint.

    Raises:
        ValueError: the record that is to follow cannot name a library, since it is not installed.
    """
    program(tuple(sorted(sources(targets(cfg)).values())))
    if run.config.exists() and not code_changed:
        return
    sha256, config = fingerprint(cfg), without(SECRETS, OmegaConf.to_container(cfg, resolve=True))
    stem = run.path.name.removesuffix(sha256[:8])
    if stem != run.path.name and (old := next(_same_settings(run.path.parent, stem, sha256), None)):
        log.info("%s differs only by code: resume=force continues it", old.path)
    config["choices"] = {"model": model_name(cfg), "data": data_name(cfg)}
    head = f"{MARK}{sha256}\n" + f"{CHANGED}\n" * code_changed
    write_whole(run.config, f"{head}{OmegaConf.to_yaml(OmegaConf.create(config))}".encode())


def stored_fingerprint(run: RunDir) -> str | None:
    """The fingerprint in a ``config.yaml``; None: it has none."""
    line = _head(run)[0]
    return line.removeprefix(MARK).strip() if line.startswith(MARK) else None


def code_changed(run: RunDir) -> bool:
    """Whether the run was resumed although the code had changed."""
    return _head(run)[1].strip() == CHANGED


def _head(run: RunDir) -> tuple[str, str]:
    with run.config.open(encoding="utf-8", errors="replace") as file:
        return file.readline(1000), file.readline(1000)


def earlier(run: RunDir, cfg: DictConfig) -> Record | None:
    """The record of this run, or None if it has not finished.

    Raises:
        ValueError: the directory holds another run, or (with ``resume=never``) any; or its record is damaged.
    """
    if not run.config.exists():
        return None
    sha256, stored = fingerprint(cfg), stored_fingerprint(run)
    if cfg.get("resume") == "never":
        raise ValueError(f"{run.path} holds a run already (resume=never): give this one another hydra.run.dir")
    if stored != sha256 and fingerprint(load_config(run)) != sha256:
        raise ValueError(f"{run.path} holds another run, with other settings: give this one another hydra.run.dir")
    if stored != sha256 and cfg.get("resume") != "force":
        raise ValueError(
            f"{run.path} holds a run that differs only by code: resume=force goes on with it, another hydra.run.dir "
            "starts anew"
        )
    if run.record.exists():
        try:
            record = Record.read(run.record)
        except ValueError as error:
            raise ValueError(f"{error}: remove the file, and the same command makes it again") from None
        log.info("%s: already finished", run.path)
        return record
    if stored != sha256:
        create(run, cfg, code_changed=True)
    return None


def _named_by_hydra(*, _root_: DictConfig) -> str:
    """``${run_name:}`` in ``hydra.run.dir`` and ``hydra.sweep.subdir``."""
    if not _root_.paths.runs:
        raise ValueError("paths.runs is empty: name a folder for new run directories")
    sweep = _root_.hydra.mode == RunMode.MULTIRUN
    return run_name(_root_, _root_.hydra.sweep.dir if sweep else _root_.paths.runs)


OmegaConf.register_new_resolver("run_name", _named_by_hydra, replace=True)
