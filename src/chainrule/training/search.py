"""Hyperparameter search: Optuna proposes settings, a training answers with its NLL on the validation images.

A small driver over the configurations of ``chainrule train``, and not Hydra's Optuna plugin: the plugin pins an
Optuna of 2022, which ends the whole search at a NaN, cannot count a failed trial by default, and cannot open its own
database with today's SQLAlchemy. Here a diverged trial is a failed trial, and a search that was stopped, however,
goes on where it was.

The test images are never looked at.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import optuna
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from chainrule.files import write_whole
from chainrule.runs.directory import is_mistake, lock, message
from chainrule.runs.fingerprint import run_name
from chainrule.runs.settings import check
from chainrule.training import train as training

log = logging.getLogger(__name__)

OURS = ("search", "hparams_search", "resume")  # keys that `chainrule train` need not be told
QUIET = ("logger=csv", "trainer.enable_progress_bar=false")  # of every trial, unless the user says otherwise
SAID = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "given up early", TrialState.FAIL: "failed"}
HOPELESS = 3  # a search whose first trials all fail is a mistake, not a search


# ---- the space --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """What is searched: keys of ``chainrule train``, each with a distribution or with one value for all trials."""

    sampled: dict[str, BaseDistribution]
    fixed: dict[str, Any]

    def overrides(self, parameters: Mapping[str, Any]) -> list[str]:
        """The overrides of one trial, exactly as it is trained: floats have four digits."""
        return [_word(key, value) for key, value in self.fixed.items()] + [
            _word(key, _short(value, self.sampled[key])) for key, value in parameters.items()
        ]


def parse_space(space: Mapping[str, Any], pinned: Sequence[str] = ()) -> Space:
    """Reads values in Hydra's own grammar for sweeps.

    ``choice(a, b)``, ``range(1, 5)``, ``interval(0, 1)``, ``int(interval(1, 9))``, ``tag(log, interval(1e-4, 1e-2))``;
    anything else is one value for all trials. Keys in ``pinned`` are left out, and so is what is null.

    Raises:
        ValueError: a value is none of these.
    """
    read = {key: _read(key, value) for key, value in space.items() if key not in pinned and value is not None}
    sampled = {key: value for key, value in read.items() if isinstance(value, BaseDistribution)}
    return Space(sampled, {key: value for key, value in read.items() if key not in sampled})


def _read(key: str, value: Any) -> Any:  # noqa: ANN401 (whatever stands in the YAML)
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}").value()
        return _distribution(parsed)
    except (HydraException, ValueError) as error:
        raise ValueError(
            f"search.space has {key}: {value}, which must be choice(…), range(…), interval(…), int(interval(…)), "
            f"tag(log, interval(…)) or one value ({str(error).splitlines()[0]})"
        ) from error


def _distribution(parsed: Any) -> Any:  # noqa: ANN401 (what Hydra's parser gives)
    match parsed:
        case ChoiceSweep():
            return CategoricalDistribution([_bare(choice) for choice in parsed.list])
        case RangeSweep(start=int(start), stop=int(stop), step=int(step)) if range(start, stop, step):
            return IntDistribution(start, range(start, stop, step)[-1], step=step)
        case RangeSweep():
            raise ValueError("range(…) takes whole numbers, and stops before its end")
        case IntervalSweep(start=int(low), end=int(high)):
            return IntDistribution(low, high, log="log" in parsed.tags)
        case IntervalSweep():
            return FloatDistribution(float(parsed.start or 0), float(parsed.end or 0), log="log" in parsed.tags)
    return parsed


def _bare(value: Any) -> Any:  # noqa: ANN401
    """A choice as Hydra's parser read it, without the quotes: of everything else it takes them off itself."""
    if isinstance(value, list):
        return [_bare(item) for item in value]
    if isinstance(value, dict):
        return {_bare(key): _bare(item) for key, item in value.items()}
    return value.text if isinstance(value, QuotedString) else value


def _short(value: Any, distribution: BaseDistribution) -> Any:  # noqa: ANN401
    """A value that a person can type: four digits, where these stay in the range."""
    if not isinstance(distribution, FloatDistribution):
        return value
    short = float(f"{value:.4g}")
    return short if distribution.low <= short <= distribution.high else value


def _word(key: str, value: Any) -> str:  # noqa: ANN401
    return f"{key}={'[' + ','.join(map(str, value)) + ']' if isinstance(value, list) else value}"


# ---- the search -------------------------------------------------------------------------------------


class Search:
    """A study in a folder: ``study.db`` (SQLite, as optuna-dashboard reads it) and a run directory for each trial.

    Args:
        cfg: the composed configuration of ``conf/search.yaml``.
        folder: where everything goes; what is there already is continued.
        overrides: of ``chainrule train`` that hold in every trial.
    """

    study: optuna.Study

    def __init__(self, cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> None:
        check(cfg)
        self.options, self.seed, self.folder = cfg.search, int(cfg.seed), folder
        self.overrides, self.fresh = list(overrides), cfg.resume == "never"
        space = cast(dict[str, Any], OmegaConf.to_container(cfg.search.space))
        self.space = parse_space(space, [_key(override) for override in overrides])
        if not self.space.sampled:
            raise ValueError("nothing is searched: give search.space at least one choice(…), range(…) or interval(…)")

    def run(self) -> None:
        """Trains until there are enough trials; those that were killed are trained again, from where they were.

        Raises:
            ValueError: the first trials all failed, the folder holds another search, or somebody is running this one.
        """
        with lock(self.folder):
            self.study = self._open()
            self._repeat_killed()
            ended = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]
            missing = self.options.trials - len(ended) + len(self.study.user_attrs["killed"])
            if missing > 0:
                self.study.optimize(
                    self._train, missing, self.options.seconds, catch=(Exception,), callbacks=[self._give_up]
                )

    def command(self, trial: FrozenTrial) -> list[str]:
        """The overrides of ``chainrule train`` that repeat a trial."""
        return [*self.overrides, *self.space.overrides(trial.params)]

    def ranking(self) -> list[FrozenTrial]:
        """Finished trials, the best first."""
        finished = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        return sorted(finished, key=lambda trial: float(trial.value or 0))

    def _open(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        file = self.folder.resolve() / "study.db"
        study = optuna.create_study(  # a path in a URL would have to be quoted
            storage=RDBStorage("sqlite://", engine_kwargs={"creator": lambda: sqlite3.connect(file)}),
            study_name="chainrule",
            pruner=instantiate(self.options.pruner) or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        named = [o for o in self.overrides if not _key(o).startswith(("paths.", "logger", "trainer.enable_"))]
        this = json.dumps([self.space.overrides({}), [*map(repr, self.space.sampled.items())], named])
        if study.user_attrs.get("search", this) != this or (study.trials and self.fresh):
            raise ValueError(
                f"{self.folder} holds a search already, of other settings (or resume=never): give this one another "
                "hydra.run.dir"
            )
        study.set_user_attr("search", this)
        # A sampler forgets where it was: with the same seed again it would propose the same settings again.
        study.sampler = instantiate(self.options.sampler, seed=self.seed + len(study.trials))
        if not study.trials:  # the first trial has the values of `chainrule train`, where the space has them, too
            cfg = self._compose([*self.overrides, *self.space.overrides({})])
            values = {key: OmegaConf.select(cfg, key) for key in self.space.sampled}
            study.enqueue_trial({key: v for key, v in values.items() if _is_within(v, self.space.sampled[key])})
        return study

    def _repeat_killed(self) -> None:
        """Trials that began and never ended are asked for again; their settings name the same run directory."""
        known = list(self.study.user_attrs.get("killed", []))
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING, TrialState.FAIL]):
            if trial.number in known or "failure" in trial.user_attrs:
                continue
            if trial.state == TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
            if set(trial.params) == set(self.space.sampled):
                self.study.enqueue_trial(trial.params)
            known.append(trial.number)
        self.study.set_user_attr("killed", known)

    def _train(self, trial: optuna.Trial) -> float:
        chosen = {key: _suggest(trial, key, distribution) for key, distribution in self.space.sampled.items()}
        overrides = [*self.overrides, *self.space.overrides(chosen)]
        log.info("trial %d: %s", trial.number + 1, " ".join(overrides))
        try:
            cfg = self._compose(overrides)
            nll = training.fit(cfg, self.folder / run_name(cfg, self.folder), [Report(trial)]).nll
            if not math.isfinite(nll):
                raise ValueError(f"the validation NLL is {nll}")
        except optuna.TrialPruned:
            raise
        except Exception as error:
            reason = message(error).partition("\n")[0]
            log.warning("trial %d failed: %s", trial.number + 1, reason, exc_info=not is_mistake(error))
            trial.set_user_attr("failure", reason)
            raise
        finally:
            if "wandb" in sys.modules:  # the next trial would otherwise go on in its W&B run
                sys.modules["wandb"].finish()
        best = min([nll, *(t.value for t in self.ranking() if t.value is not None)])
        log.info("trial %d: validation NLL %.3f; the best so far %.3f", trial.number + 1, nll, best)
        return nll

    def _give_up(self, study: optuna.Study, last: FrozenTrial) -> None:
        done = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
        failures = [t.user_attrs["failure"] for t in done if "failure" in t.user_attrs]
        if len(done) == len(failures) >= HOPELESS:
            raise ValueError(f"all of the first {len(done)} trials failed; the last: {failures[-1]}")

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        return compose("train", overrides=[*QUIET, *overrides])


class Report(Callback):
    """Tells Optuna how a trial is doing, at every percent of its training, and ends it when Optuna says so."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        nll = float(trainer.callback_metrics["val/nll"])
        epochs = trainer.max_epochs or 1
        if not math.isfinite(nll) or trainer.current_epoch + 1 >= epochs:
            return
        self.trial.report(nll, round(100 * (trainer.current_epoch + 1) / epochs))
        if self.trial.should_prune():
            raise optuna.TrialPruned


def _suggest(trial: optuna.Trial, key: str, distribution: BaseDistribution) -> Any:  # noqa: ANN401
    match distribution:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(key, choices)
        case IntDistribution() as d:
            return trial.suggest_int(key, d.low, d.high, step=d.step, log=d.log)
        case FloatDistribution() as d:
            return trial.suggest_float(key, d.low, d.high, log=d.log)
    raise AssertionError(distribution)


def _is_within(value: Any, distribution: BaseDistribution) -> bool:  # noqa: ANN401
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high


def train_overrides(choices: Mapping[str, str | None], overrides: Sequence[str]) -> list[str]:
    """What ``chainrule train`` must be told: choices that are not its own, and the user's overrides.

    Args:
        choices: of config groups in the search.
        overrides: of the command line.
    """
    own = compose("train", return_hydra_config=True).hydra.runtime.choices
    given = [override for override in overrides if _key(override).partition(".")[0] not in OURS]
    named = {_key(override) for override in given}
    groups = [group for group in own if "/" not in group and group not in named]
    return [f"{group}={choices[group]}" for group in groups if choices[group] != own[group]] + given


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


# ---- what it found ----------------------------------------------------------------------------------


def write_recipe(search: Search, trial: FrozenTrial) -> Path:
    """Writes a trial as an experiment: ``chainrule train --config-dir FOLDER experiment=best`` repeats it."""
    words = [word for word in search.command(trial) if not word.startswith(("paths.", "hydra"))]
    groups, values = _parts(OverridesParser.create().parse_overrides(words))
    recipe = [groups.pop("experiment")] if "experiment" in groups else []
    defaults = [*recipe, *({f"override /{group}": choice} for group, choice in groups.items())]
    head = f"# @package _global_\n# Validation NLL {trial.value:.3f}: the best of {len(search.study.trials)} trials.\n"
    path = search.folder / "experiment" / "best.yaml"
    write_whole(path, (head + OmegaConf.to_yaml({"defaults": defaults} | values)).encode())
    return path


def _parts(overrides: Sequence[Override]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choices of config groups, and nested values."""
    known = GlobalHydra.instance().config_loader().list_groups("")
    groups = {o.key_or_group: o.value() for o in overrides if o.key_or_group in known}
    values = OmegaConf.create()
    for override in overrides:
        if override.key_or_group not in known:
            OmegaConf.update(values, override.key_or_group, override.value())
    return groups, cast(dict[str, Any], OmegaConf.to_container(values))


def summary(search: Search, rows: int = 5) -> Table:
    """The best trials as a table, with the settings that were searched."""
    states = [trial.state for trial in search.study.get_trials(deepcopy=False)]
    counts = [f"{states.count(state)} {said}" for state, said in SAID.items() if state in states]
    table = Table(title=", ".join(counts), title_justify="left")
    for heading in ("trial", "val NLL", "settings"):
        table.add_column(heading, no_wrap=heading != "settings")
    for trial in search.ranking()[:rows]:
        settings = dict(word.split("=", 1) for word in search.space.overrides(trial.params))
        said = " ".join(f"{key.partition('.')[2] or key}={settings[key]}" for key in search.space.sampled)
        table.add_row(f"{trial.number:03d}", f"{trial.value:.3f}", said)
    return table
