"""The real command line, end to end on data that needs no download."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from zoo import MODELS, ROOT

import chainrule
from chainrule import cli
from chainrule.runs.directory import discover, lock
from chainrule.runs.load import read_checkpoint
from chainrule.runs.record import Record
from chainrule.training import train as training

TOY = ["data=toy", "logger=csv", "trainer.enable_progress_bar=false"]
ENTROPY = np.log(14)  # of bars and stripes, 3×3

Run = Callable[..., str]


def chainrule_command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"WANDB_MODE": "offline", "COLUMNS": "100"}
    command = [str(Path(sys.executable).with_name("chainrule")), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of NADE on toy images, by the command itself."""
    cwd = tmp_path_factory.mktemp("trained")
    words = ["model=nade", "model.hidden=20", "optimizer.lr=0.05", "trainer.max_epochs=15", "samples=16"]
    done = chainrule_command("train", *TOY, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "test NLL" in done.stdout
    (run,) = (cwd / "runs").iterdir()
    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, in an empty folder, and returns what it printed; errors are SystemExit."""

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["chainrule", *words])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        cli.main()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return call


def test_a_run_directory_is_complete(trained: Path) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "train.log", "metrics.csv", "samples.png", "completions.png", "nll_test.npz", "result.json",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", ".lock",
    }  # fmt: skip


def test_the_record_says_what_the_checkpoint_gives(trained: Path) -> None:
    record = json.loads((trained / "result.json").read_text())
    model = chainrule.load_model(trained)
    from chainrule.data import Toy

    data = Toy(data_dir=".", cache_dir=".")
    data.setup("test")
    nll = -model.log_prob(data.test).double()
    assert record["nll"]["test"]["mean"] == pytest.approx(nll.mean().item(), abs=1e-12)
    assert record["nll"]["test"]["stderr"] == pytest.approx(nll.std().item() / len(nll) ** 0.5, abs=1e-12)
    assert record["nll"]["test"]["count"] == len(data.test)
    assert np.load(trained / "nll_test.npz")["nll"] == pytest.approx(nll.detach().numpy())
    assert record["bits_per_pixel"] == pytest.approx(nll.mean().item() / np.log(2) / 9)
    assert ENTROPY < nll.mean() < 2.75
    assert record["parameters"] == {"count": 9 * 20 + 20 + 9 * 20 + 9, "effective": 9 * 20 + 9 * 20 + 9}
    assert record["data"]["sha256"]["test"] == data.sha256["test"]
    assert record["overrides"][0] == "data=toy"
    assert record["config"]["model"]["hidden"] == 20


def test_selection_is_by_validation(trained: Path) -> None:
    lines = [line.split(",") for line in (trained / "metrics.csv").read_text().splitlines()]
    column = lines[0].index("val/nll")
    values = [float(line[column]) for line in lines[1:] if line[column]]
    record = json.loads((trained / "result.json").read_text())
    assert len(values) == 15
    assert record["nll"]["valid"]["mean"] == pytest.approx(min(values), abs=1e-5)
    assert record["best_epoch"] == int(np.argmin(values))


def test_evaluate(trained: Path, run: Run) -> None:
    mean = json.loads((trained / "result.json").read_text())["nll"]["test"]["mean"]
    assert f"toy test: {mean:.3f} ±" in run("evaluate", f"run={trained}")
    assert "toy train:" in run("evaluate", f"run={trained}", "split=train")


def test_sample(trained: Path, run: Run, tmp_path: Path) -> None:
    run("sample", f"run={trained}", "n=50", "seed=3", "out=bits.npy")
    bits = np.load(tmp_path / "bits.npy")
    assert bits.shape == (50, 3, 3)
    expected = chainrule.load_model(trained).sample(50, torch.Generator().manual_seed(3))
    assert np.array_equal(bits.reshape(50, 9), expected.numpy())
    run("sample", f"run={trained}", "n=9", "out=with space, comma=and.png")
    assert (tmp_path / "with space, comma=and.png").stat().st_size > 100


def test_complete(trained: Path, run: Run, tmp_path: Path) -> None:
    run("complete", f"run={trained}", "n=3", "draws=2", "out=c.png")
    assert (tmp_path / "c.png").stat().st_size > 100


def test_tabulate(trained: Path, run: Run) -> None:
    assert "nade" in run("tabulate", f"runs={trained.parent}")
    assert "nade" in run("tabulate", f"runs={trained},{trained.parent}", "format=markdown")


def test_the_same_seed_trains_the_same_weights(run: Run, tmp_path: Path) -> None:
    words = ["model=nade", "model.hidden=4", "trainer.max_epochs=2"]
    states = []
    for name in ("a", "b"):
        run("train", *TOY, *words, f"hydra.run.dir={name}")
        states.append(chainrule.load_model(tmp_path / name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_training_a_table_arrives_at_its_closed_form(run: Run, tmp_path: Path) -> None:
    table = ["model=tabular", "model.smoothing=0.5", "data.batch_size=1000", "optimizer.lr=0.3"]
    run("train", *TOY, *table, "model.closed_form=true", "trainer.max_epochs=0", "hydra.run.dir=closed")
    run("train", *TOY, *table, "trainer.max_epochs=400", "hydra.run.dir=sgd")
    # The last weights, not the selected ones: validation would rather have fewer pseudo-counts.
    files = (tmp_path / "closed/checkpoints/best.ckpt", tmp_path / "sgd/checkpoints/last.ckpt")
    closed, trained = (torch.sigmoid(read_checkpoint(file)[0]["theta"]) for file in files)
    assert (closed - trained).abs().max() < 1e-4


def test_a_table_reaches_the_entropy(run: Run, tmp_path: Path) -> None:
    table = ["model=tabular", "model.smoothing=0"]
    run("train", *TOY, *table, "optimizer.lr=1", "trainer.max_epochs=60", "hydra.run.dir=sgd")
    run("train", *TOY, *table, "model.closed_form=true", "trainer.max_epochs=0", "hydra.run.dir=closed")
    trained, closed = (Record.read(tmp_path / name).nll["test"].mean for name in ("sgd", "closed"))
    assert trained == pytest.approx(ENTROPY, abs=1e-3)
    assert closed == pytest.approx(ENTROPY, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adamw"])
@pytest.mark.parametrize("scheduler", ["constant", "cosine", "inverse_time"])
def test_optimizers_and_schedules_compose(run: Run, tmp_path: Path, optimizer: str, scheduler: str) -> None:
    words = [f"optimizer={optimizer}", f"scheduler={scheduler}", "trainer.gradient_clip_val=5"]
    run("train", *TOY, "model=fvsbn", "trainer.max_epochs=3", "hydra.run.dir=r", *words)
    lines = [line.split(",") for line in (tmp_path / "r/metrics.csv").read_text().splitlines()]
    train = [float(line[lines[0].index("train/nll")]) for line in lines[1:] if line[lines[0].index("train/nll")]]
    assert train[-1] < train[0]


def test_ema_and_early_stopping(run: Run, tmp_path: Path) -> None:
    words = ["callbacks=[ema,early_stopping]", "callbacks.ema.decay=0.9", "callbacks.early_stopping.patience=1"]
    run("train", *TOY, "model=fvsbn", "model.order=random-1", "hydra.run.dir=r", "optimizer.lr=3", *words)
    record = Record.read(tmp_path / "r")
    assert record.epochs < 40
    # An average of permutations is none: the order must come through untouched.
    from chainrule.orders import permutation

    assert torch.equal(chainrule.load_model(tmp_path / "r").order, permutation("random-1", (3, 3)))
    # The selected weights are what people hand on: once, and without what goes on training them.
    best, last = (torch.load(tmp_path / f"r/checkpoints/{name}.ckpt") for name in ("best", "last"))
    assert {key for key in last if key not in best} == {"optimizer_states", "current_model_state"}


@pytest.mark.parametrize("model", MODELS)
def test_mixed_precision_trains_and_is_scored_in_float32(model: str, run: Run, tmp_path: Path) -> None:
    side = "data.side=4"  # even, for models that cut images into patches
    run(
        "train", *TOY, side, f"model={model}", "trainer.precision=bf16-mixed", "trainer.max_epochs=3", "hydra.run.dir=r"
    )
    assert chainrule.load_model(tmp_path / "r").dtype == torch.float32
    assert Record.read(tmp_path / "r").nll["test"].mean < 16 * np.log(2)


def test_mixed_precision_with_a_fused_optimizer_and_clipping(run: Run, tmp_path: Path) -> None:
    words = [
        "model=fvsbn",
        "optimizer=adamw",
        "optimizer.lr=0.1",
        "trainer.max_epochs=2",
        "trainer.gradient_clip_val=0.01",
    ]
    run("train", *TOY, *words, "trainer.precision=bf16-mixed", "hydra.run.dir=r")
    run("train", *TOY, *words, "hydra.run.dir=s")
    in_bfloat16, clipped = (Record.read(tmp_path / name).nll["valid"].mean for name in "rs")
    assert in_bfloat16 == pytest.approx(clipped, abs=0.05)


@pytest.mark.parametrize("slower", [1.0, 6.0])
def test_a_processor_on_which_bfloat16_is_slow_is_told(
    slower: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0  # seconds on a clock that nothing but a convolution moves

    def convolve(x: torch.Tensor, weight: torch.Tensor) -> None:
        nonlocal now
        now += 0.01 * (slower if x.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(torch, "conv2d", convolve)
    training.probe_bfloat16()
    assert ("6.0 times slower" in caplog.text) == ("trainer.precision=32-true" in caplog.text) == (slower > 1)


def test_train_returns_what_a_sweep_minimizes(tmp_path: Path) -> None:
    out = tmp_path / "r"
    words = [*TOY, "model=fvsbn", "trainer.max_epochs=3", f"hydra.run.dir={out}", f"hydra.runtime.output_dir={out}"]
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        cfg = compose("train", overrides=words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]  # as a task sees it
    returned = cli.train(cfg)
    lines = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()]
    column = lines[0].index("val/nll")
    assert returned == pytest.approx(min(float(line[column]) for line in lines[1:] if line[column]), abs=1e-5)


def test_every_job_of_a_sweep_leaves_a_record(run: Run, tmp_path: Path) -> None:
    run("train", "-m", *TOY, "model=fvsbn,tabular", "trainer.max_epochs=1", "seed=0,1")
    found, unfinished = discover(tmp_path / "runs")
    assert sorted((r.model, r.seed) for r in found) == [("fvsbn", 0), ("fvsbn", 1), ("tabular", 0), ("tabular", 1)]
    assert not unfinished


def test_a_run_never_overwrites_another(trained: Path, run: Run) -> None:
    record = (trained / "result.json").read_bytes()
    with pytest.raises(SystemExit, match="holds another run"):
        run("train", *TOY, "model=fvsbn", f"hydra.run.dir={trained}")
    assert (trained / "result.json").read_bytes() == record


@pytest.mark.parametrize("words", [["--help"], *[[verb, "--help"] for verb in cli.VERBS]])
def test_help_is_short_and_names_the_keys(words: list[str], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        said = run(*words)
    except SystemExit as stop:  # Hydra leaves by the door
        assert not stop.code
        said = capsys.readouterr().out
    assert said.startswith("chainrule")
    assert len(said.splitlines()) < 110


def test_help_has_the_keys_of_what_is_chosen(run: Run) -> None:
    said = run("train", "model=pixelcnn", "optimizer=sgd", "--help")
    assert re.search(r"model=pixelcnn\n  channels: 48", said)
    assert "momentum" in said
    assert "_target_" not in said


@pytest.mark.parametrize(("word", "meant"), [
    ("modle=nade", "model"), ("optimizer.lrr=1", "optimizer.lr"), ("lr=1", "optimizer.lr"), ("ckptpath=x", "ckpt_path"),
    ("model.hiden=3", "model.hidden"),
])  # fmt: skip
def test_a_misspelt_key_is_told_the_right_one(word: str, meant: str, run: Run) -> None:
    with pytest.raises(SystemExit, match=rf"no key '{word.partition('=')[0]}' here: did you mean .*\b{meant}\b"):
        run("train", *TOY, word)


@pytest.mark.parametrize(("words", "said"), [
    (["experiment=n16", *TOY, "data.side=4", "trainer.max_epochs=1"], "is a sweep, model=fvsbn,mlp,nade"),
    ([*TOY, "data.side=4", "model=pixelcnn", "model.channels=2", "model.blocks=1", "model.told=true"], "orders=grid?"),
])  # fmt: skip
def test_what_is_probably_not_meant_is_said(words: list[str], said: str, run: Run, tmp_path: Path) -> None:
    run("train", *words, "hydra.run.dir=r")
    assert said in (tmp_path / "r/train.log").read_text()


def test_a_run_that_is_refused_leaves_no_folder(run: Run, tmp_path: Path) -> None:
    for word in ("seed=abc", "model.hidden=0", "data.side=99", "trainer.precision=77", "orders=0", "+optimizer.foo=1"):
        with pytest.raises(SystemExit):
            run("train", *TOY, word)
        assert not list((tmp_path / "runs").glob("*")), word


def test_a_folder_that_another_process_holds_is_left_alone(run: Run, tmp_path: Path) -> None:
    with lock(tmp_path / "r"), pytest.raises(SystemExit, match="in use by another run"):
        run("train", *TOY, "hydra.run.dir=r")
    assert (tmp_path / "r").is_dir()


def test_of_an_interrupted_run_is_said_that_it_is_one(run: Run, trained: Path, tmp_path: Path) -> None:
    again = shutil.copytree(trained, tmp_path / "again")
    (again / "result.json").unlink()
    log = logging.getLogger("chainrule.evaluation.scoring")
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(log, "warning", lambda text, *values: said.append(text % values))
        run("evaluate", f"run={again}")
    assert "has not finished" in said[0]


def test_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("an invariant of ours")

    monkeypatch.setattr("chainrule.evaluation.scoring.evaluate", broken)
    with pytest.raises(AssertionError, match="invariant"):
        run("evaluate", "run=x")


def test_a_part_of_the_images_makes_no_result(run: Run, tmp_path: Path) -> None:
    run("train", *TOY, "model=fvsbn", "debug=fast", "hydra.run.dir=r")
    assert json.loads((tmp_path / "r/result.json").read_text())["complete"] is False


def test_the_last_epoch_is_validated_and_no_epoch_has_another_s_nll(run: Run, tmp_path: Path) -> None:
    words = ["trainer.max_epochs=3", "+trainer.check_val_every_n_epoch=2", "optimizer.lr=0.05"]
    run("train", *TOY, "model=fvsbn", "hydra.run.dir=r", *words)
    lines = [line.split(",") for line in (tmp_path / "r/metrics.csv").read_text().splitlines()]
    nll, epoch = lines[0].index("val/nll"), lines[0].index("epoch")
    assert [line[epoch] for line in lines[1:] if line[nll]] == ["1", "2"]
    record = json.loads((tmp_path / "r/result.json").read_text())
    assert record["best_epoch"] == 2
    assert record["complete"] is True


def test_another_s_cluster_does_not_matter(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "MPLBACKEND": "x"}.items():
        monkeypatch.setenv(key, value)
    run("train", *TOY, "model=fvsbn", "trainer.max_epochs=1", "hydra.run.dir=r")
    assert (tmp_path / "r/metrics.csv").is_file()


def test_a_training_is_four_functions_of_ours_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[str] = []

    def fit(*_: object, **__: object) -> None:
        frames.extend(f.function for f in inspect.stack() if Path(f.filename).is_relative_to(ROOT / "src"))
        raise ValueError("seen")

    monkeypatch.setattr("lightning.Trainer.fit", fit)
    with pytest.raises(SystemExit, match="seen"):
        run("train", *TOY, "model=fvsbn")
    assert frames == ["_fit", "train", "train", "main"]


def test_the_version(run: Run) -> None:
    assert run("--version").startswith("chainrule 0.")
    done = subprocess.run([sys.executable, "-m", "chainrule", "--version"], capture_output=True, check=True)
    assert done.stdout.startswith(b"chainrule 0.")


def test_the_command_uses_the_checkout_s_own_configuration() -> None:
    assert cli.CONF == ROOT / "conf"


def test_list_says_what_there_is_with_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("# A model of mine. It is\n# short.\n_target_: mine.Mine\n")
    monkeypatch.setattr(sys, "argv", ["chainrule", "list", "models", f"--config-dir={tmp_path}"])
    cli.main()
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted([*MODELS, "mine"])
    assert ["mine", "A model of mine"] in [line.split(maxsplit=1) for line in lines]
    assert all(len(line.split()) > 3 for line in lines)

    monkeypatch.setattr(sys, "argv", ["chainrule", "list"])
    cli.main()
    assert {"model=", "data=", "experiment="} <= set(re.findall(r"\w+=(?=\))", capsys.readouterr().out))
    monkeypatch.setattr(sys, "argv", ["chainrule", "list", "modles"])
    with pytest.raises(SystemExit, match="no 'modles'; there are models, data, experiments"):
        cli.main()


@pytest.mark.parametrize("words", ["--help", "train --help", "list", f"tabulate runs={ROOT}/results"])
def test_output_that_nobody_reads_is_no_error(words: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "chainrule", *words.split()]
    with os.fdopen(write, "w") as nobody:
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_shows_its_configuration_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data=toy", "model=fvsbn", "logger=none", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"]
    for wanted in ("null", "true"):  # null: not where no terminal is
        monkeypatch.setattr(sys, "argv", ["chainrule", "train", *words, f"print_config={wanted}"])
        cli.main()  # the second time the run is already finished, by the same fingerprint
        assert ("_target_: chainrule.models.fvsbn.FVSBN" in capsys.readouterr().out) == (wanted == "true")
    assert len(list(tmp_path.glob("runs/*"))) == 1
