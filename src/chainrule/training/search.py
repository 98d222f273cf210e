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
import time
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
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from chainrule.files import write_whole
from chainrule.runs.directory import lock
from chainrule.runs.fingerprint import fingerprint, stored_fingerprint
from chainrule.runs.settings import check
from chainrule.training import train as experiment
from chainrule.training.sweep import finish_wandb

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

    def words(self, parameters: Mapping[str, Any]) -> list[str]:
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
    return _bare(parsed)


def _bare(value: Any) -> Any:  # noqa: ANN401
    """What Hydra's parser read, without the quotes."""
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
        words: overrides of ``chainrule train`` that hold in every trial.
    """

    study: optuna.Study

    def __init__(self, cfg: DictConfig, folder: Path, words: Sequence[str]) -> None:
        check(cfg)
        self.options, self.seed, self.folder = cfg.search, int(cfg.seed), folder
        self.words = list(words)
        self.space = parse_space(
            cast(dict[str, Any], OmegaConf.to_container(cfg.search.space)), [_key(word) for word in words]
        )
        if not self.space.sampled:
            raise ValueError("nothing is searched: give search.space at least one choice(…), range(…) or interval(…)")
        self.fresh = cfg.resume == "never"

    def run(self) -> None:
        """Ends what was interrupted, then asks for new trials until there are enough of them.

        Raises:
            ValueError: the first trials all failed, the folder holds another search, or somebody is running this one.
        """
        started = time.perf_counter()
        with lock(self.folder):
            self.study = self._open()
            for trial in self._interrupted():
                self._train(trial)
            while self._wants_more(time.perf_counter() - started):
                self._train(self.study.ask(self.space.sampled))

    def command(self, trial: FrozenTrial) -> list[str]:
        """The words of ``chainrule train`` that repeat a trial."""
        return [*self.words, *self.space.words(trial.params)]

    def ranking(self) -> list[FrozenTrial]:
        """Finished trials, the best first."""
        finished = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        return sorted(finished, key=lambda trial: float(trial.value or 0))

    def count(self, state: TrialState) -> int:
        return len(self.study.get_trials(deepcopy=False, states=[state]))

    def _open(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=f"sqlite:///{self.folder.resolve() / 'study.db'}",
            study_name="chainrule",
            pruner=instantiate(self.options.pruner) or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        if study.user_attrs.get("search", self._said()) != self._said() or (study.trials and self.fresh):
            raise ValueError(
                f"{self.folder} holds a search already, of other settings (or resume=never): give this one another "
                "hydra.run.dir"
            )
        study.set_user_attr("search", self._said())
        # A sampler forgets where it was: with the same seed again it would propose the same settings again.
        study.sampler = instantiate(self.options.sampler, seed=self.seed + len(study.trials))
        if not study.trials:
            study.enqueue_trial(self._recipe())
        return study

    def _said(self) -> str:
        """What makes this search this one."""
        words = [word for word in self.words if not _key(word).startswith(("paths.", "logger", "trainer.enable_"))]
        return json.dumps([self.space.words({}), [*map(repr, self.space.sampled.items())], words])

    def _recipe(self) -> dict[str, Any]:
        """Where the first trial starts: at the values that `chainrule train` has, where the space has them, too."""
        cfg = self._compose([*self.words, *self.space.words({})])
        values = {key: OmegaConf.select(cfg, key) for key in self.space.sampled}
        return {key: value for key, value in values.items() if _within(value, self.space.sampled[key])}

    def _interrupted(self) -> list[optuna.Trial]:
        """Trials that somebody began and nobody ended; one that was not even told its settings has failed."""
        begun = self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        for frozen in begun:
            if set(frozen.params) != set(self.space.sampled):
                self.study.tell(frozen.number, state=TrialState.FAIL)
        return [optuna.Trial(self.study, t._trial_id) for t in begun if set(t.params) == set(self.space.sampled)]

    def _wants_more(self, seconds: float) -> bool:
        done = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]
        if len(done) >= HOPELESS and all(trial.state == TrialState.FAIL for trial in done):
            reason = done[-1].user_attrs.get("failure", "stopped before it began")
            raise ValueError(f"all of the first {len(done)} trials failed; the last: {reason}")
        return len(done) < self.options.trials and seconds < (self.options.seconds or math.inf)

    def _train(self, trial: optuna.Trial) -> None:
        words = [*self.words, *self.space.words(trial.params)]
        log.info("trial %d of %d: %s", trial.number + 1, self.options.trials, " ".join(words))
        cfg = self._compose(words)
        try:
            nll = experiment.fit(cfg, self._run_dir(trial, cfg), [Report(trial)]).nll
            if not math.isfinite(nll):
                raise ValueError(f"the validation NLL is {nll}")
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        except Exception as error:  # whatever happens to one trial, the others go on
            self._fail(trial, error)
        else:
            self.study.tell(trial, nll)
            log.info(
                "trial %d: validation NLL %.3f; the best so far %.3f", trial.number + 1, nll, self.study.best_value
            )
        finally:
            finish_wandb(failed=False)

    def _run_dir(self, trial: optuna.Trial, cfg: DictConfig) -> Path:
        """The trial's own folder; where another version of the program left a part of it there, another one."""
        path = self.folder / f"trial-{trial.number:03d}"
        while (old := path / "config.yaml").is_file() and stored_fingerprint(old) != fingerprint(cfg):
            path = path.with_name(f"{path.name}-again")
        return path

    def _compose(self, words: Sequence[str]) -> DictConfig:
        return compose("train", overrides=[*QUIET, *words])

    def _fail(self, trial: optuna.Trial, error: Exception) -> None:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        ours = not isinstance(error, (ValueError, OSError))
        log.warning("trial %d failed: %s", trial.number + 1, reason, exc_info=ours)
        trial.set_user_attr("failure", reason)
        self.study.tell(trial, state=TrialState.FAIL)


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


def _within(value: Any, distribution: BaseDistribution) -> bool:  # noqa: ANN401
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False


def train_words(choices: Mapping[str, str | None], overrides: Sequence[str]) -> list[str]:
    """What ``chainrule train`` must be told: choices that are not its own, and the user's words.

    Args:
        choices: of config groups in the search.
        overrides: the words on the command line.
    """
    own = compose("train", return_hydra_config=True).hydra.runtime.choices
    given = [word for word in overrides if _key(word).partition(".")[0] not in OURS]
    named = {_key(word) for word in given}
    groups = [group for group in own if "/" not in group and group not in named]
    return [f"{group}={choices[group]}" for group in groups if choices[group] != own[group]] + given


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


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
    groups = {o.key_or_group: _bare(o.value()) for o in overrides if o.key_or_group in known}
    values = OmegaConf.create()
    for override in overrides:
        if override.key_or_group not in known:
            OmegaConf.update(values, override.key_or_group, _bare(override.value()))
    return groups, cast(dict[str, Any], OmegaConf.to_container(values))


def summary(search: Search, rows: int = 5) -> Table:
    """The best trials as a table; the settings that were searched are its columns."""
    counts = [f"{search.count(state)} {said}" for state, said in SAID.items() if search.count(state)]
    table = Table(title=", ".join(counts), title_justify="left")
    keys = list(search.space.sampled)
    for heading in ("trial", "val NLL", *(key.replace(".", ".\n", 1) for key in keys)):
        table.add_column(heading, justify="right")
    for trial in search.ranking()[:rows]:
        settings = dict(word.split("=", 1) for word in search.space.words(trial.params))
        table.add_row(f"{trial.number:03d}", f"{trial.value:.3f}", *(settings[key] for key in keys))
    return table
