"""What W&B gets, read back by its own reader from the files of offline runs; and the other loggers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import numpy as np
import pytest
import torch
import wandb
import yaml
from commands import finish
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import EMAWeightAveraging
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from zoo import ROOT, build

from chainrule import CONF
from chainrule.data import Toy
from chainrule.evaluation import images as pictures
from chainrule.reporting import workspace
from chainrule.training import checkpoints, loggers, schedules
from chainrule.training import sweep as sweeps
from chainrule.training.module import DensityModule
from chainrule.training.wandb import SHOWN, Tracker, WandbCallback

RECIPE = ["data=toy", "data.side=4", "trainer.enable_progress_bar=false", "samples=8"]
NADE = [*RECIPE, "model=nade", "model.hidden=4", "callbacks=[ema]", "callbacks.ema.decay=0.9", "trainer.max_epochs=5",
        "logger.wandb.pictures=2"]  # fmt: skip
FVSBN = [*RECIPE, "model=fvsbn", "trainer.max_epochs=1"]
EPOCHS, STEPS = 5, 10
PICTURES = {f"pictures/{name}" for name in ("samples", "completions", "nats_per_pixel", "conditionals")}
KEY = "x" * 40


# ---- commands, and what they leave behind -------------------------------------------------------------


def alone(home: Path, **environment: str) -> None:
    """The environment of a user who is not logged in; called in a process of its own."""
    for name in [name for name in os.environ if name.startswith(("WANDB", "NETRC"))]:
        del os.environ[name]
    os.environ.update({"HOME": str(home)} | environment)


def train(words: list[str], folder: Path, run: str = "run", code: int = 0, **environment: str) -> str:
    """Trains in ``folder/run``; returns what was said."""
    command = ["train", *words, *([f"hydra.run.dir={run}"] if run else [])]
    ended, said = finish(command, folder, partial(alone, folder, **environment))
    assert ended == code, said
    return said


def parts(run: Path) -> list[Path]:
    """The offline runs that a run directory holds, oldest first."""
    return sorted(run.glob("wandb/offline-run-*"))


@dataclass
class Log:
    """The contents of an offline run."""

    run: dict[str, Any]
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    artifacts: list[dict[str, Any]]


def inspect(part: Path, *options: str) -> str:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", *options, str(part)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read(part: Path) -> Log:
    records = [json.loads(line) for line in inspect(part).splitlines()]
    whole = json.loads(inspect(part, "--summary"))
    of = {kind: [r[kind] for r in records if r["type"] == kind] for kind in ("run", "history", "artifact")}
    return Log(
        of["run"][0], whole["config"], [row["item"] for row in of["history"]], whole["summary"], of["artifact"],
    )  # fmt: skip


def pixels(part: Path, picture: str) -> np.ndarray:
    return np.asarray(Image.open(part / "files" / picture))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``run``, a finished training with everything on."""
    folder = tmp_path_factory.mktemp("wandb")
    more = ["logger.wandb.watch=true", "logger.wandb.log_model=true", "logger.wandb.log_nll=true", "tags=[mine]"]
    (folder / "said.txt").write_text(train([*NADE, *more], folder))
    return folder


@pytest.fixture(scope="module")
def part(folder: Path) -> Path:
    (part,) = parts(folder / "run")
    return part


@pytest.fixture(scope="module")
def logged(part: Path) -> Log:
    return read(part)


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run/result.json").read_text())
    return content


# ---- a run --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_line_says_how_to_upload_later(folder: Path) -> None:
    said = (folder / "said.txt").read_text()
    (line,) = [line for line in said.splitlines() if "W&B" in line or line.startswith("wandb")]
    assert line.endswith(f"wandb sync {folder / 'run/wandb'}/offline-run-*")


@pytest.mark.slow
def test_a_run_is_named_and_tagged_and_has_its_configuration(folder: Path, logged: Log, record: dict[str, Any]) -> None:
    settings = "nade-data=toy-side=4-hidden=4-callbacks=[ema]-decay=0.9-max_epochs=5"
    assert (logged.run["display_name"], logged.run["project"], logged.run["job_type"]) == (
        f"{settings}-s0", "chainrule", "train",
    )  # fmt: skip
    assert logged.run["tags"] == ["nade", "toy", "mine"]
    assert not logged.run.get("run_group")  # neither an experiment nor a sweep
    assert logged.run["run_id"] == (folder / "run/wandb_id").read_text()
    config = dict(logged.config)
    assert config["model"].pop("name") == "nade"
    assert config["data"].pop("name") == "toy"
    assert config.pop("settings") == settings
    assert config.pop("sha256") == {
        "data": record["data"]["sha256"], "code": record["code_sha256"], "checkpoint": record["checkpoint_sha256"],
    }  # fmt: skip
    assert (config.pop("commit"), config.pop("dirty")) == (record["git"]["commit"], record["git"]["dirty"])
    config.pop("_wandb", None)
    assert config == record["config"]  # under unchanged keys, and without paths of this machine
    assert not {"paths", "hydra"} & config.keys()
    assert config["optimizer"]["lr"] == 3e-3


@pytest.mark.slow
def test_an_epoch_is_a_row_at_the_number_of_optimizer_steps(logged: Log) -> None:
    *epochs, result = logged.history
    assert [row["_step"] for row in epochs] == [STEPS * (epoch + 1) - 1 for epoch in range(EPOCHS)]
    assert all(row["_step"] == row["trainer/global_step"] for row in logged.history)
    assert [row["epoch"] for row in epochs] == list(range(EPOCHS))
    numbers = ("train/nll", "val/nll", "lr", "train/grad_norm", "train/images_per_second")
    assert all(np.isfinite(row[name]) and row[name] >= 0 for row in epochs for name in numbers)
    assert epochs[0]["lr"] > epochs[-1]["lr"] == 0  # cosine
    assert result["_step"] == STEPS * EPOCHS
    drawn = [row["epoch"] for row in epochs if "pictures/samples.path" in row]
    assert drawn == [0, 2]  # every second epoch; in the last one the result brings its own
    for name in ("W", "V", "b", "c"):
        for kind in ("weights", "gradients"):
            assert all(row[f"{kind}/density.{name}._type"] == "histogram" for row in epochs)


@pytest.mark.slow
def test_the_summary_is_the_result(logged: Log, record: dict[str, Any]) -> None:
    test = record["nll"]["test"]
    assert logged.summary["test/nll"] == test["mean"]
    assert logged.summary["test/nll_stderr"] == test["stderr"]
    assert logged.summary["val/nll"] == {"min": record["nll"]["valid"]["mean"]}
    assert logged.summary["val/nll"]["min"] == pytest.approx(min(row["val/nll"] for row in logged.history[:-1]))
    assert logged.summary["parameters"] == record["parameters"]["count"]
    assert {key: logged.summary[key] for key in ("seconds", "epochs", "best_epoch", "bits_per_pixel", "kernel")} == {
        key: record[key] for key in ("seconds", "epochs", "best_epoch", "bits_per_pixel", "kernel")
    }
    assert logged.summary.keys() >= PICTURES
    assert logged.history[-1]["val/best_nll"] == record["nll"]["valid"]["mean"]


@pytest.mark.slow
def test_no_picture_is_black(folder: Path, part: Path, logged: Log) -> None:
    result = logged.history[-1]
    for key in PICTURES:
        picture = pixels(part, result[f"{key}.path"])
        assert picture.dtype == np.uint8
        assert picture.max() > 200, key
        assert picture.min() < 60, key
        assert 100 < max(picture.shape[:2]) < 1400
    samples = pixels(part, logged.history[0]["pictures/samples.path"])
    assert set(np.unique(samples)) == {0, 89, 255}  # bits, and the lines between images
    for key in ("samples", "completions"):
        assert np.array_equal(pixels(part, result[f"pictures/{key}.path"]), Image.open(folder / f"run/{key}.png"))


@pytest.mark.slow
def test_tables_and_artifacts(folder: Path, part: Path, logged: Log, record: dict[str, Any]) -> None:
    (extremes,), (samples,) = (
        [json.loads(file.read_text()) for file in part.glob(f"files/media/table/{name}*.json")]
        for name in ("test/extremes", "samples")
    )
    assert extremes["columns"] == ["kind", "test image", "nats", "x", "p(pixel on)", "nats by pixel"]
    nll = np.load(folder / "run/nll_test.npz")["nll"]
    assert [row[0] for row in extremes["data"]] == ["worst"] * 8 + ["best"] * 8
    assert [row[2] for row in extremes["data"]] == [nll[row[1]] for row in extremes["data"]]
    assert [row[2] for row in extremes["data"]] == sorted(nll)[:-9:-1] + sorted(nll)[:8]
    assert samples["data"][0][:4] == ["run", "nade", 0, record["nll"]["test"]["mean"]]
    files = {a["type"]: [entry["path"] for entry in a["manifest"]["contents"]] for a in logged.artifacts}
    assert files["model"] == ["best.ckpt", "config.yaml"]
    assert files["nll"] == ["nll_test.npz"]


@pytest.mark.slow
def test_the_picture_of_a_dashboard_is_drawn_from_what_was_sent(folder: Path, tmp_path: Path) -> None:
    script = ROOT / "scripts/draw_dashboard"
    subprocess.run([sys.executable, str(script), str(folder), str(tmp_path / "d.png")], check=True)
    assert np.asarray(Image.open(tmp_path / "d.png").convert("L")).std() > 10


@pytest.mark.slow
def test_one_network_in_several_orders_shows_its_extremes_too(tmp_path: Path) -> None:
    train([*FVSBN, "orders=[raster,raster_lr]"], tmp_path)
    (table,) = parts(tmp_path / "run")[0].glob("files/media/table/test/extremes*.json")
    extremes = json.loads(table.read_text())
    assert extremes["columns"] == ["kind", "test image", "nats", "x"]
    nll = np.load(tmp_path / "run/nll_test.npz")["nll"]
    assert [row[2] for row in extremes["data"]] == sorted(nll)[:-9:-1] + sorted(nll)[:8]


@pytest.mark.slow
def test_training_is_the_same_with_and_without(folder: Path, record: dict[str, Any]) -> None:
    words = [word for word in NADE if "wandb" not in word]
    for logger in ("none", "csv"):
        said = train([*words, f"logger={logger}"], folder, logger)
        assert "W&B" not in said
        assert not [path for path in (folder / logger).rglob("*") if "wandb" in path.name]
        assert json.loads((folder / logger / "result.json").read_text())["nll"] == record["nll"]
        for name in ("best.ckpt", "last.ckpt"):
            one, other = (torch.load(folder / run / "checkpoints" / name)["state_dict"] for run in ("run", logger))
            assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_an_experiment_is_a_group_and_nothing_is_sent_unasked(tmp_path: Path) -> None:
    words = ["experiment=tabular", "data=toy", "data.side=3", "logger.wandb.tags=[a,b]", "logger.wandb.notes=why"]
    train([*words, "trainer.enable_progress_bar=false"], tmp_path)
    found = read(parts(tmp_path / "run")[0])
    assert (found.run["run_group"], found.run["notes"]) == ("tabular", "why")
    assert found.run["tags"] == ["tabular", "toy", "a", "b"]
    assert {artifact["type"] for artifact in found.artifacts} <= {"run_table"}
    assert {key.partition(".")[0] for key in found.history[-1]} >= PICTURES  # also of a run without an epoch
    assert not [key for row in found.history for key in row if key.startswith(("weights", "gradients"))]


@pytest.mark.slow
def test_a_sweep_is_a_group_whose_runs_are_named_by_what_varies(tmp_path: Path) -> None:
    words = ["train", "-m", "data=toy", "model=nade", "trainer.max_epochs=1", "samples=1", "seed=0", "model.hidden=2,3",
             "trainer.enable_progress_bar=false", "hydra.sweep.dir=my-sweep"]  # fmt: skip
    code, said = finish(words, tmp_path, partial(alone, tmp_path))
    assert code == 0, said
    found = [read(part) for run in sorted((tmp_path / "my-sweep").glob("nade-*")) for part in parts(run)]
    assert [log.run["run_group"] for log in found] == ["my-sweep"] * 2
    names = sorted(log.run["display_name"] for log in found)
    assert names == [f"nade-hidden={hidden}-s0" for hidden in (2, 3)]
    settings = sorted(json.dumps(log.config["settings"]) for log in found)  # of other sweeps, too, others have others
    assert all(f"data=toy-max_epochs=1-hidden={hidden}" in said for hidden, said in zip((2, 3), settings, strict=True))
    assert len({log.run["run_id"] for log in found}) == 2


@pytest.mark.slow
def test_what_the_environment_says_is_honoured(tmp_path: Path) -> None:
    environment = {"NAME": "mine", "TAGS": "a,b", "NOTES": "why", "JOB_TYPE": "try", "ENTITY": "us", "RUN_GROUP": "g",
                   "PROJECT": "p", "RUN_ID": "abc"}  # fmt: skip
    train([*FVSBN, "logger.wandb.job_type=other"], tmp_path, **{f"WANDB_{key}": v for key, v in environment.items()})
    run = read(parts(tmp_path / "run")[0]).run
    assert run["tags"] == ["fvsbn", "toy", "a", "b"]
    assert [run[key] for key in ("display_name", "notes", "job_type", "entity", "run_group", "project", "run_id")] == [
        "mine", "why", "other", "us", "g", "p", "abc",
    ]  # fmt: skip


# ---- runs that are resumed ----------------------------------------------------------------------------


def killed_in_the_third_epoch(home: Path) -> None:
    alone(home)
    kill = checkpoints.Savers.on_train_epoch_start

    def start(saver: checkpoints.Savers, trainer: L.Trainer, module: L.LightningModule) -> None:
        kill(saver, trainer, module)
        if trainer.current_epoch == 3:
            threading.Event().wait(0.5)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.Savers.on_train_epoch_start = start  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_resumed_run_is_one_run_whose_parts_follow_each_other(tmp_path: Path, logged: Log) -> None:
    code, _ = finish(["train", *NADE, "hydra.run.dir=run"], tmp_path, partial(killed_in_the_third_epoch, tmp_path))
    assert code == -signal.SIGKILL
    train(NADE, tmp_path)
    first, second = map(read, parts(tmp_path / "run"))
    assert first.run["run_id"] == second.run["run_id"]
    for row, same in zip(first.history + second.history, logged.history, strict=True):  # as if nobody had killed it
        for key in ("_step", "val/nll", "pictures/samples.sha256"):
            assert row.get(key) == same.get(key)


# ---- with and without a login -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "https://no-such-host.invalid"])
def test_a_server_out_of_reach_costs_two_seconds_and_a_line(tmp_path: Path, address: str) -> None:
    said = train(FVSBN, tmp_path, WANDB_BASE_URL=address, WANDB_API_KEY=KEY)
    (warning,) = [line for line in said.splitlines() if "WARNING" in line]
    assert "W&B: " in warning
    assert "wandb sync" in said
    (part,) = parts(tmp_path / "run")
    assert "test/nll" in read(part).summary


@pytest.mark.slow
def test_what_w_and_b_cannot_take_does_not_cost_the_result(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = train(FVSBN, tmp_path, WANDB_DATA_DIR=str(tmp_path / "file"))  # where a table's images are put first
    assert "WARNING" in said
    (part,) = parts(tmp_path / "run")
    assert "test/nll" in read(part).summary
    assert {key.partition(".")[0] for key in read(part).history[-1]} >= PICTURES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "environment"), [([], {"WANDB_MODE": "disabled"}), (["logger.wandb.mode=disabled"], {})]
)
def test_w_and_b_can_be_switched_off(tmp_path: Path, words: list[str], environment: dict[str, str]) -> None:
    said = train([*FVSBN, *words], tmp_path, **environment)
    assert "W&B" not in said
    assert not list((tmp_path / "run").glob("wandb*"))


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A user who is not logged in."""
    wandb.teardown()  # first: it has variables of its own
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    return monkeypatch


def begun(folder: Path, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    """What W&B would be asked for."""
    monkeypatch.setattr(Tracker, "_begin", lambda tracker: None)
    tracker = Tracker(run_dir=folder, model="m", data="d", seed=1, config={"model": {}, "data": {}}, **arguments)
    return tracker._wandb_init


def test_a_user_with_a_key_is_online_unless_a_first_part_waits(nobody: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert begun(tmp_path, nobody)["mode"] == "offline"
    first = (tmp_path / "wandb_id").read_text()
    (tmp_path / "none").write_text(f"machine api.forge.coreweave.com login user password {KEY}\n")
    wandb.teardown()
    asked = begun(tmp_path, nobody)
    assert (asked["mode"], asked["id"], asked["name"]) == ("online", first, "m-s1")
    assert (asked["settings"].console, asked["settings"].init_timeout) == ("wrap", 2)
    assert len(first) == 8
    assert begun(tmp_path, nobody, mode="offline")["mode"] == "offline"
    part = tmp_path / "wandb/offline-run-20260101_000000-abcd1234"
    part.mkdir(parents=True)
    assert begun(tmp_path, nobody)["mode"] == "offline"
    (part / "run-abcd1234.wandb.synced").touch()
    assert begun(tmp_path, nobody)["mode"] == "online"
    wandb.teardown()  # and forgets the key


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({"WANDB_API_KEY": "short"}, {}, "WANDB_API_KEY invalid: API key must have 40"),
        ({"WANDB_MODE": "maybe"}, {}, "WANDB_….*mode Input should be 'online'"),
        ({}, {"project": "a/b"}, "Invalid project name 'a/b': cannot contain"),
        ({}, {"notes": 5}, "run_notes Input should be a valid string"),
        ({}, {"tags": 5}, "logger.wandb"),
        ({}, {"mode": "maybe"}, "logger.wandb.mode must be None or online or offline or disabled, got 'maybe'"),
        ({}, {"init_timeout": "long"}, "init_timeout Input should be a valid number"),
        ({}, {"colour": "red"}, r"logger\.wandb\.colour: wandb.init knows .*entity"),
        ({}, {"dir": "here"}, r"logger\.wandb\.dir: wandb.init knows"),
    ],
)
def test_what_w_and_b_does_not_know_is_one_message(
    nobody: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], arguments: dict[str, Any], message: str
) -> None:
    for key, value in environment.items():
        nobody.setenv(key, value)
    with pytest.raises(ValueError, match=message) as caught:
        Tracker(run_dir=tmp_path, model="m", data="d", seed=1, config={"model": {}, "data": {}}, **arguments)
    assert "\n" not in str(caught.value)
    wandb.teardown()


# ---- the callback, and pictures -----------------------------------------------------------------------


class Remembering(Tracker):
    """Keeps what it is given; there is no W&B behind it."""

    def __init__(self, folder: Path) -> None:
        config: dict[str, Any] = {"model": {}, "data": {}}
        super().__init__(run_dir=folder, model="m", data="d", seed=0, config=config, pictures=1, mode="disabled")
        self.rows: list[tuple[int | None, dict[str, Any]]] = []

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def finish_row(self) -> None:
        pass


class Averages(L.Callback):
    """Keeps a sample from the averaged weights of every epoch, taken from where Lightning has them; and gradients."""

    def __init__(self, average: EMAWeightAveraging) -> None:
        self.average, self.samples, self.raw = average, [], []
        self.gradients: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: object) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for kept, module in ((self.samples, self.average._average_model.module), (self.raw, pl_module)):
            kept.append(module.density.sample(SHOWN, torch.Generator().manual_seed(0)))


def test_samples_in_training_come_from_the_averaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainrule.training.wandb._image", lambda picture, caption: picture)
    tracker, average = Remembering(tmp_path), EMAWeightAveraging(decay=0.99, use_buffers=False)
    after = Averages(average)
    module = DensityModule(
        build("fvsbn").float().train(),
        optimizer=lambda p: torch.optim.SGD(p, lr=5),
        scheduler=schedules.constant,
        train_size=1000,
    )
    trainer = L.Trainer(
        max_epochs=3, logger=tracker, callbacks=[WandbCallback(), average, after], default_root_dir=tmp_path, devices=1,
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=Toy())
    shown = {step: row["pictures/samples"] for step, row in tracker.rows if "pictures/samples" in row}
    assert list(shown) == [9, 19]
    for picture, average_sample, raw in zip(shown.values(), after.samples, after.raw, strict=False):
        assert np.array_equal(picture, pictures.as_bytes(pictures.grid(average_sample, (3, 3))))
        assert not np.array_equal(picture, pictures.as_bytes(pictures.grid(raw, (3, 3))))
    norms = {step: row["train/grad_norm"] for step, row in tracker.rows if "train/grad_norm" in row}
    assert list(norms) == [9, 19, 29]
    assert list(norms.values()) == pytest.approx([float(after.gradients[step].norm()) for step in norms])


def test_pictures_are_bytes_that_use_their_range() -> None:
    ramp = torch.linspace(0, 1, 16, dtype=torch.float64)
    assert pictures.gray(ramp, (4, 4)).shape == (112, 112, 1)
    assert np.unique(pictures.gray(ramp, (4, 4))).tolist() == [round(255 * k / 15) for k in range(16)]
    heat = pictures.colored(ramp, (4, 4), high=1.0)
    assert heat.shape == (112, 112, 3)
    assert heat[0, 0].sum() < 20  # nearly black
    assert heat[-1, -1].sum() > 600
    assert not pictures.colored(torch.zeros(16), (4, 4), high=0.0).sum(-1).max() > 20
    for picture in (
        pictures.heat_map(ramp, (4, 4), "title"),
        pictures.conditionals(ramp.round(), ramp, ramp, (4, 4), "title"),
    ):
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert picture[2, 2].tolist() == [255, 255, 255]  # paper
        assert picture.min() < 30


# ---- other loggers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_logger_that_is_not_installed_names_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(loggers, {"tensorboard": "TensorBoardLogger", "mlflow": "MLFlowLogger"}[name], missing)
    maker = instantiate(OmegaConf.load(CONF / f"logger/{name}.yaml")[name])
    with pytest.raises(ValueError, match=rf"logger={name} needs .* pip install 'chainrule\[{name}\]'"):
        maker(run_dir=tmp_path, model="m", data="d", seed=0, config={})
    assert name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_a_sweep_of_w_and_b_gives_words_that_train_knows() -> None:
    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    assert sweep["command"][1:3] == ["${program}", "train"]
    words = [word for word in sweep["command"][3:] if "$" not in word]
    some = [f"{key}={about.get('min', about.get('values', [0])[0])}" for key, about in sweep["parameters"].items()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        compose("train", overrides=[*words, *some], return_hydra_config=True)
    assert sweep["metric"]["name"] == "val/best_nll"


# ---- the workspace ------------------------------------------------------------------------------------


def config(**changes: object) -> DictConfig:
    cfg = OmegaConf.load(CONF / "dashboard.yaml")
    return cast(DictConfig, OmegaConf.merge(cfg, {"project": "chainrule", "entity": None, **changes}))


def named(content: object) -> set[str]:
    """Whatever is the name of a metric or of a picture in a workspace."""
    if isinstance(content, dict):
        return {name for value in content.values() for name in named(value)}
    if isinstance(content, list):
        return {name for value in content for name in named(value)}
    return {content.removeprefix("summary:")} if isinstance(content, str) else set()


def test_without_a_login_the_workspace_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "logged_in", lambda: False)
    files = [workspace.dashboard(config(out=str(tmp_path / name))) for name in ("a.json", "b/c.json")]
    assert Path(files[0]).read_bytes() == Path(files[1]).read_bytes()
    content = json.loads(Path(files[0]).read_text())
    assert (content["project"], content["name"]) == ("chainrule", "chainrule")
    kinds = [
        panel["viewType"]
        for section in content["spec"]["section"]["panelBankConfig"]["sections"]
        for panel in section["panels"]
    ]
    expected = {"Run History Line Plot", "Bar Chart", "Scatter Plot", "Media Browser", "Run Comparer", "Weave"}
    assert set(kinds) == expected | {"Parallel Coordinates Plot"}


@pytest.mark.slow
def test_the_workspace_shows_what_runs_send(logged: Log) -> None:
    sections = workspace.content(workspace.build(config()))["spec"]["section"]["panelBankConfig"]["sections"]
    wanted = {name for name in named(sections) if name.startswith(("train/", "val/", "test/", "pictures/"))}
    sent = {key.partition(".")[0] for row in logged.history for key in row} | logged.summary.keys()
    assert wanted | {"lr", "epoch", "parameters", "seconds"} <= sent
    assert wanted >= {"train/nll", "val/nll", "test/nll", "train/grad_norm", "train/images_per_second"} | PICTURES
    # W&B puts config keys as model.value.name
    assert {"model.value.name", "settings.value"} <= named(sections)
    assert {"model", "settings"} <= logged.config.keys()
    assert {"samples", "test/extremes"} <= wanted | sent


def test_with_a_login_the_workspace_is_published_or_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[dict[str, Any]] = []

    def save(of: object) -> object:
        saved.append(workspace.content(cast(Any, of)))
        if len(saved) > 1:
            raise wandb.errors.CommError("out of order")
        return SimpleNamespace(url="https://there")

    monkeypatch.setattr(workspace, "logged_in", lambda: True)
    monkeypatch.setattr(workspace.ws.Workspace, "save", save)
    assert workspace.dashboard(config(entity="me", project="mine")) == "https://there"
    assert (saved[0]["entity"], saved[0]["project"]) == ("me", "mine")
    with pytest.raises(ValueError, match="W&B does not take a workspace for the project mine: out of order"):
        workspace.dashboard(config(entity="me", project="mine"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None if name == "wandb_workspaces" else object())
    with pytest.raises(ValueError, match=r"pip install 'chainrule\[dashboard\]'"):
        sweeps.require("dashboard")
