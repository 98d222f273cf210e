"""What W&B gets, read back from the files of runs that had no network."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import pytest
import torch
import wandb
from commands import finish
from lightning.pytorch.callbacks import EMAWeightAveraging
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from wandb_file import Log, items, parts, read
from wandb_server import Server
from zoo import ROOT, build

from chainrule.data import Toy
from chainrule.evaluation import images as pictures
from chainrule.reporting import workspace
from chainrule.runs import settings
from chainrule.training import checkpoints, login, schedules
from chainrule.training import sweep as sweeps
from chainrule.training.module import DensityModule
from chainrule.training.shown import SHOWN, Dashboard
from chainrule.training.tracker import Tracker

RECIPE = ["data=toy", "data.side=4", "trainer.enable_progress_bar=false", "samples=8"]
NADE = [*RECIPE, "model=nade", "model.hidden=4", "callbacks=[ema]", "callbacks.ema.decay=0.9", "trainer.max_epochs=5",
        "logger.wandb.pictures=2"]  # fmt: skip
EPOCHS, STEPS = 5, 10
PICTURES = {f"pictures/{name}" for name in ("samples", "completions", "nats_per_pixel", "conditionals")}


# ---- commands, and what they leave behind -------------------------------------------------------------


def alone(home: Path, **environment: str) -> None:
    """The environment of a user who is not logged in; called in a process of its own."""
    for name in [name for name in os.environ if name.startswith(("WANDB", "NETRC"))]:
        del os.environ[name]
    os.environ.update({"HOME": str(home)} | environment)


def train(words: list[str], folder: Path, run: str = "run", **environment: str) -> str:
    """Trains in ``folder/run``; returns what was said."""
    command = ["train", *words, f"hydra.run.dir={run}"]
    code, said = finish(command, folder, partial(alone, folder, **environment))
    assert code == 0, said
    return said


def pixels(part: Path, picture: str) -> np.ndarray:
    return np.asarray(Image.open(part / "files" / picture))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``run``, a finished training with everything on."""
    folder = tmp_path_factory.mktemp("wandb")
    (folder / "said.txt").write_text(train(NADE, folder))
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


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


# ---- a run --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_line_says_how_to_upload_later(folder: Path) -> None:
    said = (folder / "said.txt").read_text()
    (line,) = [line for line in said.splitlines() if "W&B" in line or line.startswith("wandb")]
    assert line.endswith(f"wandb sync {folder / 'run/wandb'}/offline-run-*")


@pytest.mark.slow
def test_a_run_is_named_and_tagged_and_has_its_configuration(folder: Path, logged: Log, record: dict[str, Any]) -> None:
    assert (logged.run.display_name, logged.run.project, logged.run.job_type) == ("nade-s0", "chainrule", "train")
    assert list(logged.run.tags) == ["nade", "toy"]
    assert logged.run.run_group == ""  # neither an experiment nor a sweep
    assert logged.run.run_id == (folder / "run/wandb_id").read_text()
    config = items(logged.run.config.update)
    assert config["model"].pop("name") == "nade"
    assert config["data"].pop("name") == "toy"
    del config["_wandb"]
    assert config == record["config"]  # under unchanged keys, and without paths of this machine
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


@pytest.mark.slow
def test_the_official_reader_agrees(part: Path, record: dict[str, Any]) -> None:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--summary", "--json", str(part)]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (shown["name"], shown["state"], shown["exit_code"], shown["step"]) == ("nade-s0", "finished", 0, 50)
    assert shown["summary"]["test/nll"] == pytest.approx(record["nll"]["test"]["mean"])
    assert shown["summary"]["val/nll"]["min"] == pytest.approx(record["nll"]["valid"]["mean"])
    assert shown["config"]["optimizer"]["lr"] == 3e-3
    assert shown["summary"].keys() >= PICTURES


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
def test_the_table_has_the_worst_and_the_best_test_images(folder: Path, part: Path, logged: Log) -> None:
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "run_table"]
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    table = json.loads(files["test/extremes.table.json"].read_text())
    assert table["columns"] == ["kind", "test image", "nats", "x", "p(pixel on)", "nats by pixel"]
    nll = np.load(folder / "run/nll_test.npz")["nll"]
    assert [row[0] for row in table["data"]] == ["worst"] * 8 + ["best"] * 8
    assert [row[2] for row in table["data"]] == [nll[row[1]] for row in table["data"]]
    assert [row[2] for row in table["data"]] == sorted(nll)[:-9:-1] + sorted(nll)[:8]
    shown = [np.asarray(Image.open(files[image["path"]])) for row in table["data"] for image in row[3:]]
    assert all(picture.shape[:2] == (112, 112) and picture.max() > picture.min() for picture in shown)


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
def test_an_experiment_is_a_group_and_a_model_an_artifact_when_asked(tmp_path: Path, logged: Log) -> None:
    words = ["experiment=tabular", "data=toy", "data.side=3", "logger.wandb.log_model=true", "logger.wandb.tags=[a,b]"]
    train([*words, "trainer.enable_progress_bar=false"], tmp_path)
    (part,) = parts(tmp_path / "run")
    found = read(part)
    assert found.run.run_group == "tabular"
    assert list(found.run.tags) == ["tabular", "toy", "a", "b"]
    (model,) = [artifact for artifact in found.artifacts if artifact.type == "model"]
    assert [entry.path for entry in model.manifest.contents] == ["best.ckpt", "config.yaml"]
    assert not [artifact for artifact in logged.artifacts if artifact.type == "model"]
    assert {key.partition(".")[0] for key in found.history[-1]} >= PICTURES  # also of a run without an epoch


@pytest.mark.slow
def test_a_sweep_is_a_group(tmp_path: Path) -> None:
    words = ["train", "-m", *RECIPE, "model=fvsbn", "trainer.max_epochs=1", "seed=0,1", "hydra.sweep.dir=my-sweep"]
    code, said = finish(words, tmp_path, partial(alone, tmp_path))
    assert code == 0, said
    found = [read(part) for run in sorted((tmp_path / "my-sweep").glob("fvsbn-*")) for part in parts(run)]
    assert [log.run.run_group for log in found] == ["my-sweep"] * 2
    assert [log.run.display_name for log in found] == ["fvsbn-s0", "fvsbn-s1"]
    assert len({log.run.run_id for log in found}) == 2


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
def test_a_resumed_run_is_one_run_after_syncing(tmp_path: Path, logged: Log, server: Server) -> None:
    code, _ = finish(["train", *NADE, "hydra.run.dir=run"], tmp_path, partial(killed_in_the_third_epoch, tmp_path))
    assert code == -signal.SIGKILL
    train(NADE, tmp_path)
    first, second = map(read, parts(tmp_path / "run"))
    assert first.run.run_id == second.run.run_id
    steps = [row["_step"] for row in first.history + second.history]
    assert steps == [row["_step"] for row in logged.history]  # as of the run that nobody killed
    for row, same in zip(first.history + second.history, logged.history, strict=True):
        assert row.get("val/nll") == same.get("val/nll")
        assert row.get("pictures/samples.sha256") == same.get("pictures/samples.sha256")
    environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "x" * 40, "HOME": str(tmp_path)}
    command = [str(Path(sys.executable).with_name("wandb")), "sync", *map(str, parts(tmp_path / "run"))]
    subprocess.run(command, env=os.environ | environment, cwd=tmp_path, capture_output=True, check=True)
    assert list(server.runs) == [first.run.run_id]
    assert [line["_step"] for line in server.history(first.run.run_id)] == steps


# ---- with and without a server ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_user_who_is_logged_in_sees_the_run_at_once(tmp_path: Path, server: Server) -> None:
    words = [*RECIPE, "model=fvsbn", "trainer.max_epochs=2", "logger.wandb.pictures=null"]
    said = train(words, tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY="x" * 40)
    (run,) = server.runs
    assert f"W&B: {server.url}/me/chainrule/runs/{run}" in said
    assert (server.runs[run]["displayName"], server.runs[run]["tags"]) == ("fvsbn-s0", ["fvsbn", "toy"])
    assert [line["_step"] for line in server.history(run)] == [9, 19, 20]
    assert not parts(tmp_path / "run")


@pytest.mark.slow
def test_a_server_that_fails_costs_nothing_but_a_line(tmp_path: Path) -> None:
    server = Server(broken=True)
    words = [*RECIPE, "model=fvsbn", "trainer.max_epochs=1"]
    said = train(words, tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY="x" * 40)
    server.stop()
    assert "out of order" in said
    assert "wandb sync" in said
    (part,) = parts(tmp_path / "run")
    assert "test/nll" in read(part).summary


@pytest.mark.slow
def test_what_w_and_b_cannot_take_does_not_cost_the_result(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = [*RECIPE, "model=fvsbn", "trainer.max_epochs=1"]
    said = train(words, tmp_path, WANDB_DATA_DIR=str(tmp_path / "file"))  # where a table's images are put first
    assert "WARNING" in said
    (part,) = parts(tmp_path / "run")
    assert "test/nll" in read(part).summary
    assert {key.partition(".")[0] for key in read(part).history[-1]} >= PICTURES


@pytest.mark.slow
def test_w_and_b_can_be_switched_off_from_outside(tmp_path: Path) -> None:
    train([*RECIPE, "model=fvsbn", "trainer.max_epochs=1"], tmp_path, WANDB_MODE="disabled")
    assert not list((tmp_path / "run").glob("wandb*"))


def test_no_network_costs_no_more_than_our_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not login.reachable("https://no-such-host.invalid")
    assert not login.reachable("http://127.0.0.1:1")
    forever = threading.Event()

    def connect(*_: object) -> None:
        forever.wait(60)
        raise OSError

    monkeypatch.setattr("socket.create_connection", connect)
    assert not login.reachable("https://a-host-that-does-not-answer.invalid")
    forever.set()


def test_a_stuck_lookup_does_not_hold_the_end_of_the_program_up() -> None:
    stuck = "import socket, time; socket.create_connection = lambda *_: time.sleep(60)"
    ask = "from chainrule.training import login; assert not login.reachable('http://stuck.invalid')"
    subprocess.run([sys.executable, "-c", f"{stuck}; {ask}"], check=True, timeout=30)


def test_behind_a_proxy_it_is_the_proxy_that_has_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody, host = "http://127.0.0.1:1", "http://no-such-host.invalid"
    with socket.create_server(("127.0.0.1", 0)) as server:
        somebody = f"127.0.0.1:{server.getsockname()[1]}"
        assert login.reachable(host, f"http://{somebody}")
        assert login.reachable(host, somebody)
        monkeypatch.setenv("http_proxy", f"http://{somebody}")
        assert login.reachable(host)
        assert not login.reachable(host, nobody)  # W&B's own setting comes first
        monkeypatch.setenv("no_proxy", "no-such-host.invalid")
        assert not login.reachable(host)


def test_without_a_key_the_network_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    asked: list[str] = []
    monkeypatch.setattr(login, "reachable", lambda url, proxy: bool(asked.append(url)) or True)
    assert not login.logged_in()
    assert not asked
    (tmp_path / "none").write_text(f"machine api.forge.coreweave.com login user password {'x' * 40}\n")
    assert login.logged_in()
    assert asked == ["https://api.forge.coreweave.com"]
    wandb.teardown()  # and forgets the key


# ---- the callback, and pictures -----------------------------------------------------------------------


class Remembering(Tracker):
    """Keeps what it is given; there is no W&B behind it."""

    def __init__(self) -> None:
        super().__init__(pictures=1, log_model=False, mode="disabled")
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
    monkeypatch.setattr("chainrule.training.shown._image", lambda picture, caption: picture)
    tracker, average = Remembering(), EMAWeightAveraging(decay=0.99, use_buffers=False)
    after = Averages(average)
    module = DensityModule(
        build("fvsbn").float().train(),
        optimizer=lambda p: torch.optim.SGD(p, lr=5),
        scheduler=schedules.constant,
        train_size=1000,
    )
    trainer = L.Trainer(
        max_epochs=3, logger=tracker, callbacks=[Dashboard(), average, after], default_root_dir=tmp_path, devices=1,
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


# ---- the workspace ------------------------------------------------------------------------------------


def config(**changes: object) -> DictConfig:
    cfg = OmegaConf.load(ROOT / "conf/dashboard.yaml")
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
    assert set(kinds) == expected


@pytest.mark.slow
def test_the_workspace_shows_what_runs_send(logged: Log) -> None:
    sections = workspace.content(workspace.build(config()))["spec"]["section"]["panelBankConfig"]["sections"]
    wanted = {name for name in named(sections) if name.startswith(("train/", "val/", "test/", "pictures/"))}
    sent = {key.partition(".")[0] for row in logged.history for key in row} | logged.summary.keys()
    assert wanted | {"lr", "epoch", "parameters", "seconds"} <= sent
    assert wanted >= {"train/nll", "val/nll", "test/nll", "train/grad_norm", "train/images_per_second"} | PICTURES
    model = items(logged.run.config.update)["model"]
    assert "model.value.name" in named(sections)
    assert model["name"] == "nade"  # W&B puts config keys as model.value.name


@pytest.mark.slow
def test_with_a_login_the_workspace_is_published(tmp_path: Path, server: Server) -> None:
    environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "x" * 40}
    code, said = finish(["dashboard", "project=mine"], tmp_path, partial(alone, tmp_path, **environment))
    assert code == 0, said
    (view,) = server.views
    assert (view["entityName"], view["projectName"]) == ("me", "mine")
    assert json.loads(view["spec"]) == workspace.content(workspace.build(config()))["spec"]
    assert f"workspace: {server.url}/me/mine?nw=" in said
    assert not (tmp_path / "dashboard.json").exists()


@pytest.mark.slow
def test_a_refused_workspace_is_one_line(tmp_path: Path) -> None:
    server = Server(broken=True)
    environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "x" * 40}
    code, said = finish(["dashboard"], tmp_path, partial(alone, tmp_path, **environment))
    server.stop()
    assert code == 1
    assert "chainrule dashboard: W&B does not take a workspace for the project chainrule" in said
    assert "Traceback" not in said


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None if name == "wandb_workspaces" else object())
    with pytest.raises(ValueError, match=r"pip install 'chainrule\[dashboard\]'"):
        sweeps.require("dashboard")


def test_the_id_stays_with_the_run_directory(tmp_path: Path) -> None:
    from chainrule.training import tracker

    first = tracker._id(tmp_path)
    assert len(first) == 8
    assert tracker._id(tmp_path) == first
    assert (tmp_path / "wandb_id").read_text() == first


def test_a_run_whose_first_part_waits_to_be_uploaded_stays_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chainrule.training import tracker

    monkeypatch.setattr(tracker, "logged_in", lambda: True)
    assert tracker._mode(tmp_path) == "online"
    part = tmp_path / "wandb/offline-run-20260101_000000-abcd1234"
    part.mkdir(parents=True)
    assert tracker._mode(tmp_path) == "offline"
    (part / "run-abcd1234.wandb.synced").touch()
    assert tracker._mode(tmp_path) == "online"


def test_private_paths_are_not_sent(logged: Log) -> None:
    assert not {"paths", "hydra"} & items(logged.run.config.update).keys()
    assert "data_dir" not in settings.public_config(OmegaConf.create({"data": {"data_dir": "/home"}}))["data"]
