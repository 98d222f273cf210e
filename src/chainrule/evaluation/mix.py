"""From finished runs to a run directory of their equal-weight mixture: what ``chainrule mix`` does."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf

from chainrule.evaluation import sampling, scoring
from chainrule.runs.directory import RunDir, discover, failure_noted, load_config, lock
from chainrule.runs.fingerprint import code_sha256, create, earlier, fingerprint, run_name, sources, targets
from chainrule.runs.load import checkpoint_sha256, load_model
from chainrule.runs.provenance import provenance
from chainrule.runs.record import Member, Record
from chainrule.runs.settings import check, public_overrides

Number = TypeVar("Number", int, float)

log = logging.getLogger(__name__)


def mix(cfg: DictConfig, overrides: Sequence[str] = ()) -> tuple[Path, Record]:
    """Mixes finished runs, scores every split once and writes a run directory that refers to its members.

    Args:
        cfg: the composed configuration of ``conf/mix.yaml``.
        overrides: the words on the command line, for the record.

    Returns:
        The run directory, and the record as it stands in its ``result.json``. A directory that holds the record of
        the same mixture is left as it is.

    Raises:
        ValueError: fewer than two runs, or runs that do not belong together.
        OSError: a checkpoint or the images cannot be found, or files not be written.
    """
    check(cfg, optional=["seed"])
    members = find_members(cfg)
    seed = _seed(cfg, members)
    top = Path(cfg.paths.runs).expanduser()
    out = Path(cfg.out).expanduser() if cfg.out else top / run_name(_config(cfg, members, seed, top / "new"), top)
    run, config = RunDir(out), _config(cfg, members, seed, out)
    with lock(run.path):
        record = earlier(run, config)
        if record is None:
            create(run, config)
            log.info("%d members; writing to %s", len(members), run.path)
            with failure_noted(run):
                record = _record(cfg, members, config, run, _words(overrides))
                record.write(run.path)
    return run.path, record


# ---- members ----------------------------------------------------------------------------------------


def find_members(cfg: DictConfig) -> list[Record]:
    """The finished runs that ``runs`` and ``only`` name, sorted by path.

    Raises:
        ValueError: they are unfinished, fewer than two, mixtures themselves, or of different data.
    """
    found, unfinished = discover(cfg.runs if isinstance(cfg.runs, str) else list(cfg.runs))
    unfinished = [run for run in unfinished if not _is_mixture(run)]  # it may be this one, begun before
    if unfinished:
        raise ValueError(
            f"unfinished: {', '.join(str(run.path) for run in unfinished)}. Finish these runs or leave them out"
        )
    members = sorted((r for r in found if cfg.only in (None, r.data.name)), key=lambda r: str(r.path))
    if mixtures := [str(r.path) for r in members if "members" in r.config]:
        raise ValueError(f"a member cannot be a mixture: name the members of {', '.join(mixtures)} instead")
    if len(members) < 2:
        kind = f" on {cfg.only}" if cfg.only else ""
        raise ValueError(f"a mixture needs two or more finished runs, found {len(members)}{kind} in runs={cfg.runs}")
    _check_same_data(members)
    return members


def _is_mixture(run: RunDir) -> bool:
    return run.config.is_file() and "members" in load_config(run)


def _check_same_data(members: Sequence[Record]) -> None:
    """Every split of every member must be the same bits; otherwise one has trained on what another is tested on."""
    kinds = Counter((r.data.name, r.data.size, *sorted(r.data.sha256.items())) for r in members)
    if len(kinds) > 1:
        names = ", ".join(f"{n} of {name} {height}×{width}" for (name, (height, width), *_), n in kinds.items())
        raise ValueError(
            f"a mixture's members must have been trained on the same images, got {names}: choose with only="
        )


def _seed(cfg: DictConfig, members: Sequence[Record]) -> int:
    """The seed asked for; else that of the members, if it is one; else 0."""
    seeds = {r.seed for r in members}
    if cfg.seed is not None:
        return int(cfg.seed)
    return seeds.pop() if len(seeds) == 1 else 0


# ---- the run directory ------------------------------------------------------------------------------


def _config(cfg: DictConfig, members: Sequence[Record], seed: int, folder: Path) -> DictConfig:
    """All that is needed to build the mixture again, and to find its images."""
    chosen = [
        {
            "run": os.path.relpath(r.path.resolve(), folder.resolve()),
            "sha256": checkpoint_sha256(RunDir(r.path)),
        }
        for r in members
    ]
    return OmegaConf.create(
        {
            "model": {"_target_": "chainrule.mixture.Mixture"},
            "of": " + ".join(sorted({r.model for r in members})),
            "members": chosen,
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
    scoring.save_test(run, nll=scores["test"])
    return Record(
        model="mixture",
        kernel=_common([r.kernel for r in members]),
        order=_orders(members),
        **scoring.scored(density, data, scores),
        seed=config.seed,
        epochs=_sum([r.epochs for r in members]),
        seconds=_sum([r.seconds for r in members]),
        sampling=sampling.draw_samples(density, run, config),
        fingerprint=fingerprint(config),
        code_sha256=code_sha256(targets(config)),
        checkpoint_sha256=checkpoint_sha256(run),
        **provenance(sources(targets(config)).values()),
        overrides=list(overrides),
        members=[_member(r) for r in members],
        config=_public(config),
    )


def _public(config: DictConfig) -> dict[str, Any]:
    """The configuration for the record: of members that lie far away, the name alone."""
    content = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    for member in content["members"]:
        path = PurePath(member["run"])
        member["run"] = path.name if path.parts.count("..") > 1 else str(path)
    return content


def _words(overrides: Sequence[str]) -> list[str]:
    """The words of the command line, without those that say where things lie on this machine."""
    return [word for word in public_overrides(overrides) if not _leads_elsewhere(*word.partition("=")[::2])]


def _leads_elsewhere(key: str, value: str) -> bool:
    """Whether these are folders that are not below the working directory."""
    folders = value.strip("[]").replace("'", "").split(",")
    return key in ("runs", "out") and any(folder.startswith(("/", "~", "..")) for folder in folders)


def _member(r: Record) -> Member:
    """What a reader wants to know of a member without looking for it."""
    nll = {split: estimate.mean for split, estimate in r.nll.items()}
    return Member(model=r.model, order=r.order, seed=r.seed, nll=nll, commit=r.git.commit)


def _orders(members: Sequence[Record]) -> str:
    orders = {str(r.order) for r in members}
    return orders.pop() if len(orders) == 1 else f"{len(orders)} orders"


def _common(values: Sequence[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None


def _sum(values: Sequence[Number | None]) -> Number | None:
    """The sum; None if it is not known of every member."""
    known = [value for value in values if value is not None]
    return cast(Number, sum(known)) if len(known) == len(values) else None
