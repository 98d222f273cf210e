"""``chainrule mix``: from finished runs to a run directory of their mixture, or of one run in several orders."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf

from chainrule.evaluation import sampling, scoring
from chainrule.mixture import in_steps
from chainrule.orders import several
from chainrule.runs.directory import RunDir, discover, failure_noted, load_config, lock
from chainrule.runs.fingerprint import code_sha256, create, earlier, fingerprint, run_name, sources, targets
from chainrule.runs.load import checkpoint_sha256, load_autoregressive, load_model
from chainrule.runs.nll import save_nll
from chainrule.runs.provenance import provenance
from chainrule.runs.record import Member, Record
from chainrule.runs.settings import check, public_overrides
from chainrule.validate import choice

log = logging.getLogger(__name__)

Number = TypeVar("Number", int, float)


def mix(cfg: DictConfig, overrides: Sequence[str] = ()) -> tuple[Path, Record]:
    """Mixes finished runs, scores every split once and writes a run directory that refers to its members.

    Args:
        cfg: the composed configuration of ``conf/mix.yaml``: ``runs``, or ``run`` and ``orders``.
        overrides: those of the command line, for the record.

    Returns:
        The run directory, and its record. A directory that holds the record of the same mixture is left as it is.

    Raises:
        ValueError: fewer than two runs, or runs that do not belong together, or a run that has only one order.
        OSError: a checkpoint or the images cannot be found, or files not be written.
    """
    check(cfg, optional=["seed", "run"])
    choice("average", cfg.average, ("images", "steps"))
    if cfg.average == "steps" and not cfg.runs:
        raise ValueError("average=steps is of several networks, runs=DIR,DIR: in another order a step is another pixel")
    members = find_members(cfg)
    if cfg.average == "steps":
        try:
            in_steps([load_model(r.path, trust=cfg.trust) for r in members])
        except ValueError as error:
            where = ", ".join(f"{r.path} ({r.order or 'no order'})" for r in members)
            raise ValueError(f"average=steps: {error}; the runs are {where}") from error
    seeds = {member.seed for member in members}
    seed = int(cfg.seed if cfg.seed is not None else seeds.pop() if len(seeds) == 1 else 0)
    orders = _orders(cfg, members[0], seed) if cfg.orders is not None else None
    top = Path(cfg.paths.runs).expanduser()
    name = None if cfg.out else run_name(_config(cfg, members, orders, seed, top / "new"), top)
    run = RunDir(Path(cfg.out).expanduser() if name is None else top / name)
    config = _config(cfg, members, orders, seed, run.path)
    with lock(run.path):
        record = earlier(run, config)
        if record is None:
            create(run, config)
            log.info("%s; writing to %s", f"{len(orders)} orders" if orders else f"{len(members)} members", run.path)
            with failure_noted(run):
                record = _record(cfg, members, config, run, overrides)
                record.write(run.path)
    return run.path, record


def find_members(cfg: DictConfig) -> list[Record]:
    """The finished runs that the configuration names, sorted by path.

    Raises:
        ValueError: they are unfinished, too few, mixtures themselves, or of different data.
    """
    if not (cfg.runs or (cfg.run and cfg.orders is not None)):
        raise ValueError("missing: runs. Give it as runs=DIR,DIR; or one run in several orders, as run=DIR orders=16")
    if cfg.runs and (cfg.run or cfg.orders is not None):
        raise ValueError("runs= mixes several runs, run= with orders= several orders of one: give one of the two")
    where = cfg.run or (cfg.runs if isinstance(cfg.runs, str) else list(cfg.runs))
    found, unfinished = discover(where)
    # An unfinished mixture may be this one, begun before.
    if left := [str(run.path) for run in unfinished if not (run.config.is_file() and "members" in load_config(run))]:
        raise ValueError(f"unfinished: {', '.join(left)}. Finish these runs or leave them out")
    named = {Path(path).expanduser().resolve() for path in ([where] if isinstance(where, str) else where)}
    mixed = [r for r in found if r.config.get("members") and (cfg.run or not r.config.get("orders"))]
    if own := [r for r in mixed if r.path.resolve() not in named]:  # perhaps of this very command, given before
        log.info("mixtures are left out: %s", ", ".join(str(r.path) for r in own))
    members = sorted((r for r in found if r not in own and cfg.only in (None, r.data.name)), key=lambda r: str(r.path))
    if mixtures := [str(r.path) for r in members if r in mixed]:
        raise ValueError(f"a member cannot be a mixture: name the members of {', '.join(mixtures)} instead")
    if cfg.run and len(members) != 1:
        raise ValueError(f"run must be one finished run, found {len(members)} in {cfg.run}")
    if cfg.runs and len(members) < 2:
        kind = f" on {cfg.only}" if cfg.only else ""
        raise ValueError(f"a mixture needs two or more finished runs, found {len(members)}{kind} in runs={cfg.runs}")
    # Every split of every member must be the same bits; otherwise one has trained on what another is tested on.
    kinds = Counter((r.data.name, r.data.size, *sorted(r.data.sha256.items())) for r in members)
    if len(kinds) > 1:
        names = ", ".join(f"{n} of {name} {height}×{width}" for (name, (height, width), *_), n in kinds.items())
        raise ValueError(
            f"a mixture's members must have been trained on the same images, got {names}: choose with only="
        )
    return members


def _orders(cfg: DictConfig, member: Record, seed: int) -> list[str]:
    """Names of the orders: as they are, or so many random ones by the seed.

    Raises:
        ValueError: they are none, or the model was trained in one order only.
    """
    density = load_autoregressive(member.path, trust=cfg.trust)
    if not density.any_order:
        raise ValueError(
            f"{member.path} was trained in one order, and is a poor model in others: mix runs of several orders, "
            "runs=DIR,DIR, or train a model of any order, such as model=deep_nade"
        )
    orders = OmegaConf.to_object(cfg.orders) if OmegaConf.is_config(cfg.orders) else cfg.orders
    names = several(cast(str | int | list[str], orders), density.shape)
    return [f"random-{seed * len(names) + k}" for k in range(len(names))] if isinstance(orders, int) else names


def _config(cfg: DictConfig, members: Sequence[Record], orders: list[str] | None, seed: int, path: Path) -> DictConfig:
    """All that is needed to build the mixture again at ``path``, and to find its images."""
    models, steps = " + ".join(sorted({r.model for r in members})), cfg.average == "steps"
    chosen = [
        {"run": os.path.relpath(r.path.resolve(), path.resolve()), "sha256": checkpoint_sha256(RunDir(r.path))}
        for r in members
    ]
    kind = "OrderEnsemble" if orders else "StepMixture" if steps else "Mixture"
    return OmegaConf.create(
        {
            "model": {"_target_": f"chainrule.mixture.{kind}"},
            "of": f"orders of {models}" if orders else f"{models}, step by step" if steps else models,
            "members": chosen,
            **({"orders": orders} if orders else {"average": "steps"} if steps else {}),
            "data": members[0].config["data"] | {"seed": seed},
            "seed": seed,
            "samples": cfg.samples,
        }
    )


def _record(
    cfg: DictConfig, members: Sequence[Record], config: DictConfig, run: RunDir, overrides: Sequence[str]
) -> Record:
    """Scores every split, and writes all that the mixture of a run directory has but the record itself."""
    density = load_model(run.path, trust=cfg.trust)
    data = scoring.load_data(cfg, config.data)
    if data.sha256 != members[0].data.sha256:
        raise ValueError(f"the members were trained on other images than {data.name} has here, by their SHA-256")
    scores = {split: scoring.nll_per_image(density, x) for split, x in scoring.splits(data).items()}
    scoring.check_finite(scores)
    save_nll(run.path, nll=scores["test"])
    kernels, orders = {r.kernel for r in members}, list(config.get("orders") or {str(r.order) for r in members})
    public = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    for member in public["members"]:  # of one that lies far away, the name alone
        path = PurePath(member["run"])
        member["run"] = path.name if path.parts.count("..") > 1 else str(path)
    return Record(
        model="mixture",
        kernel=kernels.pop() if len(kernels) == 1 else None,
        order=orders[0] if len(orders) == 1 else f"{len(orders)} orders",
        **scoring.scored(density, data, scores),
        seed=config.seed,
        epochs=_sum([r.epochs for r in members]),
        seconds=_sum([r.seconds for r in members]),
        sampling=sampling.draw_samples(density, run, config),
        fingerprint=fingerprint(config),
        code_sha256=code_sha256(targets(config)),
        checkpoint_sha256=checkpoint_sha256(run),
        **provenance(sources(targets(config)).values()),
        overrides=[word for word in public_overrides(overrides) if not _is_elsewhere(*word.partition("=")[::2])],
        members=[
            Member(
                model=r.model, order=r.order, seed=r.seed, nll={split: nats.mean for split, nats in r.nll.items()},
                commit=r.git.commit,
            )
            for r in members
        ],
        config=public,
    )  # fmt: skip


def _is_elsewhere(key: str, value: str) -> bool:
    """Whether these are folders that are not below the working directory."""
    folders = value.strip("[]").replace("'", "").split(",")
    return key in ("run", "runs", "out") and any(folder.startswith(("/", "~", "..")) for folder in folders)


def _sum(values: Sequence[Number | None]) -> Number | None:
    """The sum; None if it is not known of every member."""
    known = [value for value in values if value is not None]
    return cast(Number, sum(known)) if len(known) == len(values) else None
