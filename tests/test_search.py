"""Searches: the space, trials that fail, a study that was killed, and what is found."""

from __future__ import annotations

import json
import math
import re
import shlex
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")

from commands import finish, start  # noqa: E402
from faults import importable  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402
from zoo import ROOT  # noqa: E402

from chainrule import cli  # noqa: E402
from chainrule.training import search  # noqa: E402

TOY = ["data=toy", "trainer.max_epochs=2", "samples=4"]
FAULT = "+callbacks.fault={_target_:faults.Fault,kind:slow}"
CHOICES = sorted(path.stem for path in (ROOT / "conf/hparams_search").glob("*.yaml"))


def space(**keys: str) -> list[str]:
    """Words that make this the whole space."""
    own = OmegaConf.load(ROOT / "conf/hparams_search/fvsbn.yaml").search.space
    given = dict.fromkeys(own, "null") | {key.replace("__", "."): f"'{value}'" for key, value in keys.items()}
    return ["hparams_search=fvsbn", "++search.space={" + ",".join(f"{k}:{v}" for k, v in given.items()) + "}"]


def trials(folder: Path) -> list[Any]:
    study = optuna.load_study(study_name="chainrule", storage=f"sqlite:///{folder / 'study.db'}")
    return list(study.trials)


def command(words: list[str], cwd: Path) -> tuple[int, str]:
    return finish(words, cwd, importable)


# ---- the space ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("choice(raster, random-0)", CategoricalDistribution(["raster", "random-0"])),
        ("choice(0.0, 0.99)", CategoricalDistribution([0.0, 0.99])),
        ("interval(0, 0.4)", FloatDistribution(0, 0.4)),
        ("tag(log, interval(1e-4, 1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(1, 5))", IntDistribution(1, 5)),
        ("int(tag(log, interval(1, 500)))", IntDistribution(1, 500, log=True)),
        ("range(100, 500, 100)", IntDistribution(100, 400, step=100)),
    ],
)
def test_the_space_is_written_in_hydra_s_grammar(written: str, expected: object) -> None:
    assert search.parse_space({"model.x": written}).sampled == {"model.x": expected}


def test_single_values_are_fixed_and_pinned_keys_are_left_out() -> None:
    found = search.parse_space({"a.b": 3, "callbacks": ["ema"], "c": "range(3)", "d": "range(3)", "e": None}, ["d"])
    assert found.fixed == {"a.b": 3, "callbacks": ["ema"]}
    assert list(found.sampled) == ["c"]
    assert found.overrides({"c": 2}) == ["a.b=3", "callbacks=[ema]", "c=2"]


@pytest.mark.parametrize(
    "written",
    ["interval(2, 1)", "choice(", "range(3, 1)", "range(0, 1, 0.5)", "tag(log, interval(0, 1))", "interval(a, b)"],
)
def test_what_is_no_space_is_named(written: str) -> None:
    with pytest.raises(ValueError, match=r"search.space has model.x: .* must be choice\(…\)"):
        search.parse_space({"model.x": written})


def test_a_trial_is_trained_with_the_digits_that_are_shown() -> None:
    found = search.parse_space({"lr": "interval(0, 1)", "decay": "interval(0, 0.99995)"})
    assert found.overrides({"lr": 0.123456789, "decay": 0.99994999}) == ["lr=0.1235", "decay=0.9999"]
    assert found.overrides({"lr": 1.0, "decay": 0.99995}) == ["lr=1.0", "decay=0.99995"]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_space_that_we_ship_fits_its_model(choice: str) -> None:
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        cfg = compose("search", overrides=[f"hparams_search={choice}"], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        found = search.parse_space(OmegaConf.to_container(cfg.search.space))
        words = search.train_overrides(cfg.hydra.runtime.choices, [])
        for edge in ("low", "high"):
            ends = {k: d.choices[0] if hasattr(d, "choices") else getattr(d, edge) for k, d in found.sampled.items()}
            composed = compose("train", overrides=[*words, *found.overrides(ends)])
            assert all(OmegaConf.select(composed, key) == value for key, value in ends.items())
    assert cfg.hydra.runtime.choices.model == choice
    assert {"optimizer.lr", "optimizer.weight_decay", "trainer.max_epochs", "model.input_dropout"} <= set(found.sampled)


# ---- pruning ------------------------------------------------------------------------------------------


def test_a_hopeless_trial_is_given_up_at_the_same_fraction_of_the_training() -> None:
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=30))

    def epochs(trial: object, nlls: list[float]) -> None:
        for epoch, nll in enumerate(nlls):
            trainer = SimpleNamespace(callback_metrics={"val/nll": nll}, current_epoch=epoch, max_epochs=len(nlls))
            search.Report(trial).on_validation_end(trainer, None)  # type: ignore[arg-type]

    good = study.ask()
    epochs(good, [100.0, 95.0, 90.0, 85.0, 80.0])
    study.tell(good, 80.0)
    bad, longer = study.ask(), study.ask()
    with pytest.raises(optuna.TrialPruned):
        epochs(bad, [200.0, 199.0, 198.0, 197.0, 196.0])
    assert max(bad._cached_frozen_trial.intermediate_values) == 40  # at 20 percent it is too early to say
    epochs(longer, [100.0, 99.0, 98.0, 94.0, 96.0, 89.0, 96.0, 84.0, 79.0, 70.0])
    epochs(study.ask(), [math.nan, math.inf])  # not even said


# ---- the command --------------------------------------------------------------------------------------


def test_failed_and_diverged_trials_are_counted_and_the_best_can_be_repeated(tmp_path: Path) -> None:
    searched = space(
        optimizer__lr="tag(log,interval(1e-3,1e-1))", callbacks__fault__kind="choice(none,explode,diverge)"
    )
    words = ["search", *TOY, *searched, FAULT, "search.trials=8", "data.batch_size=50"]
    code, said = command(words, tmp_path)
    assert code == 0, said
    folder = tmp_path / "runs/search-fvsbn-toy-s0"
    found = trials(folder)
    states = [trial.state.name for trial in found]
    assert len(found) == 8
    assert {"COMPLETE", "FAIL"} <= set(states)
    assert all((t.state.name == "COMPLETE") == (t.params["callbacks.fault.kind"] == "none") for t in found)
    failures = {t.user_attrs["failure"] for t in found if t.state.name == "FAIL"}
    assert all("out of luck" in failure or "is not finite" in failure for failure in failures)
    assert f"{states.count('COMPLETE')} finished, {states.count('FAIL')} failed" in said
    # The test images are not looked at.
    assert not list(folder.rglob("result.json"))
    assert not list(folder.rglob("nll_test.npz"))
    assert "test/nll" not in "".join(path.read_text() for path in folder.rglob("metrics.csv"))

    best = min((t for t in found if t.value is not None), key=lambda trial: trial.value)
    printed = shlex.split(re.search(r"^the best: chainrule (train .*)$", said, re.MULTILINE).group(1))  # type: ignore[union-attr]
    assert "data.batch_size=50" in printed
    code, said = command([*printed, "logger=none", "hydra.run.dir=again"], tmp_path)
    assert code == 0, said
    record = json.loads((tmp_path / "again/result.json").read_text())
    assert record["nll"]["valid"]["mean"] == best.value

    recipe = ["train", "--config-dir", str(folder), "experiment=best", "logger=none", "hydra.run.dir=recipe"]
    code, said = command(recipe, tmp_path)
    assert code == 0, said
    recipe_record = json.loads((tmp_path / "recipe/result.json").read_text())
    assert recipe_record["config"] == record["config"]
    assert recipe_record["nll"] == record["nll"]


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_with_the_same_study(tmp_path: Path) -> None:
    words = ["search", "data=toy", "trainer.max_epochs=10", *space(optimizer__lr="interval(0.01,0.1)"),
             FAULT, "search.trials=4", "search.pruner=null"]  # fmt: skip
    folder = tmp_path / "runs/search-fvsbn-toy-s0"
    process = start(words, tmp_path, None, importable)
    while len(list(folder.glob("*/checkpoints/last.ckpt"))) != 2:
        assert process.is_alive()
        time.sleep(0.02)
    assert "is in use" in command(words, tmp_path)[1]
    process.kill()
    process.join()
    before = trials(folder)
    *ended, killed = before
    assert {trial.state.name for trial in ended} == {"COMPLETE"}
    assert killed.state.name == "RUNNING"

    code, said = command(words, tmp_path)
    assert code == 0, said
    after = trials(folder)
    assert sorted(trial.state.name for trial in after) == ["COMPLETE"] * 4 + ["FAIL"]  # the trial that was killed
    assert [trial.value for trial in after[: len(ended)]] == [trial.value for trial in ended]
    assert after[len(before)].params == killed.params  # is trained again, in the same folder
    assert len(list(folder.glob("fvsbn-*"))) == len({trial.params["optimizer.lr"] for trial in after}) == 4

    code, said = command([*words, "search.trials=5"], tmp_path)
    assert len(trials(folder)) == 6
    for other in ("optimizer.weight_decay=0.5", "resume=never"):
        code, said = command([*words, other], tmp_path)
        assert code == 1
        assert "holds a search already" in said
    assert len(trials(folder)) == 6


def test_a_search_in_which_nothing_works_stops_with_the_reason(tmp_path: Path) -> None:
    words = ["search", *TOY, *space(optimizer__lr="interval(-2,-1)")]
    code, said = command(words, tmp_path)
    assert code == 1
    assert "all of the first 3 trials failed; the last: optimizer.lr must be a number from 1e-12" in said
    assert len(trials(tmp_path / "runs/search-fvsbn-toy-s0")) == 3


def test_a_search_of_nothing_is_refused(tmp_path: Path) -> None:
    code, said = command(["search", *TOY, *space(optimizer__lr="0.1")], tmp_path)
    assert code == 1
    assert "nothing is searched" in said
