"""Sweeps by the real command: jobs fail, leave, are killed and interrupted; the same command again does the rest."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import finish, start
from faults import importable
from hydra import compose, initialize_config_dir
from zoo import ROOT

from chainrule import cli
from chainrule.runs.directory import RunDir
from chainrule.training import sweep as sweeps

TOY = ["data=toy", "model=fvsbn", "logger=none", "trainer.enable_progress_bar=false", "samples=4"]
FAULT = "+callbacks.fault._target_=faults.Fault"
SWEEP = ["train", "-m", *TOY, "trainer.max_epochs=2", FAULT]
SLOW = ["train", "-m", *TOY, "trainer.max_epochs=20", FAULT, "+callbacks.fault.kind=slow", "seed=range(3)"]
SECOND = "runs/fvsbn-toy-s1-*/checkpoints/last.ckpt"  # the second job of SLOW is under way


def command(words: list[str], cwd: Path) -> tuple[int, str]:
    return finish(words, cwd, importable)


def launched(words: list[str], cwd: Path) -> subprocess.Popen[str]:
    """The command as users start it: multiprocessing would wait for the workers of a launcher, which wait for jobs."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)  # a test that called cli.main in this process left it: all tracebacks
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # background jobs are deaf to it
    command = [sys.executable, "-c", f"{heed}; from chainrule.cli import main; main()", *words]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def states(folder: Path) -> list[str]:
    """What became of the jobs in a folder that began, by their directories."""
    return sorted(RunDir(config.parent).status for config in folder.glob("*/config.yaml"))


def records(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}


def wait_for(condition: Callable[[], object], alive: Callable[[], bool], seconds: float = 300) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert alive()
        assert time.monotonic() < give_up
        time.sleep(0.02)


# ---- jobs that end badly ------------------------------------------------------------------------------


def test_a_sweep_finishes_what_can_be_and_says_what_failed_and_why(tmp_path: Path) -> None:
    kinds = "+callbacks.fault.kind=none,explode,leave,diverge,slow"
    code, said = command([*SWEEP, kinds], tmp_path)
    assert code == 1
    assert "2 finished, 3 failed" in said
    assert "out of luck" in said
    assert "sys.exit(0) was called" in said
    assert "Traceback" not in said
    assert states(tmp_path / "runs") == ["failed"] * 3 + ["finished"] * 2
    logs = [(job / "train.log").read_text() for job in (tmp_path / "runs").iterdir()]
    assert sum("RuntimeError: out of luck" in log for log in logs) == 1  # with its traceback
    assert all(re.fullmatch("fvsbn-toy-s0-[0-9a-f]{8}", path.name) for path in (tmp_path / "runs").iterdir())

    before = records(tmp_path / "runs")
    code, said = command([*SWEEP, kinds], tmp_path)
    assert code == 1
    assert said.count("already finished") == 2
    assert records(tmp_path / "runs") == before


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_every_launcher_runs_a_sweep_to_its_end(launcher: str, tmp_path: Path) -> None:
    module, extra = sweeps.EXTRAS[launcher]
    if not find_spec(module):
        pytest.skip(f"the extra {extra} is not installed")
    words = [*SWEEP, "+callbacks.fault.kind=none,explode,leave,slow", f"hydra/launcher={launcher}"]
    process = launched(words, tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 1, said
    assert "2 finished, 2 failed" in said
    if launcher != "joblib":  # whose workers speak for themselves
        assert re.search("job [1-4] of 4, fvsbn-toy-s0-[0-9a-f]{8}: (running|finished|failed)", said), said
    assert states(tmp_path / "runs") == ["failed", "failed", "finished", "finished"]


@pytest.mark.slow
def test_a_job_that_is_killed_is_named(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra slurm is not installed")
    kinds = ["+callbacks.fault.kind=none,die", "hydra/launcher=submitit_local"]
    process = launched([*SWEEP, *kinds], tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 1
    assert "1 finished, 1 unfinished" in said
    assert "the launcher stopped" in said


# ---- sweeps that end badly ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_that_was_killed_does_only_the_rest(tmp_path: Path) -> None:
    process = start(SLOW, tmp_path, tmp_path / "output.txt", importable)
    wait_for(lambda: list(tmp_path.glob(SECOND)), process.is_alive)
    process.kill()
    process.join()
    assert states(tmp_path / "runs") == ["finished", "unfinished"]
    before = records(tmp_path / "runs")

    code, said = command(SLOW, tmp_path)
    assert code == 0
    assert "3 finished" in said
    after = records(tmp_path / "runs")
    assert len(after) == 3
    assert {name: after[name] for name in before} == before
    logs = [next((tmp_path / "runs").glob(f"fvsbn-toy-s{seed}-*/train.log")).read_text() for seed in range(3)]
    assert ["resuming from" in log for log in logs] == [False, True, False]
    assert code == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(("launcher", "at_once"), [("basic", 1), ("joblib", 1), ("joblib", 2)])
def test_a_sweep_that_is_stopped_keeps_what_is_finished(launcher: str, at_once: int, name: str, tmp_path: Path) -> None:
    words = [*SLOW, f"hydra/launcher={launcher}"]
    if launcher == "joblib":  # for one job at a time it starts no process
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra joblib is not installed")
        words += [f"hydra.launcher.n_jobs={at_once}"]
    process = launched(words, tmp_path)
    wait_for(lambda: list(tmp_path.glob(SECOND)), lambda: process.poll() is None)
    process.send_signal(signal.Signals[name])
    said, _ = process.communicate()
    assert process.returncode == 128 + signal.Signals[name], said
    assert "Traceback" not in said
    if at_once == 1:
        assert "1 finished, 1 unfinished, 1 never started" in said
    else:  # which of them had time to finish is chance
        assert re.search(r"\d unfinished", said)


@pytest.mark.slow
def test_sweeps_started_together_share_the_work(tmp_path: Path) -> None:
    words = [*SWEEP, "+callbacks.fault.kind=slow", "seed=0,1"]
    together = [start(words, tmp_path, tmp_path / f"{i}.txt", importable) for i in range(2)]
    for process in together:
        process.join()
    assert states(tmp_path / "runs") == ["finished", "finished"]
    assert command(words, tmp_path)[0] == 0


# ---- the same again, and what is not the same ---------------------------------------------------------


def test_a_growing_sweep_trains_what_is_new_and_a_single_run_is_its_job(tmp_path: Path) -> None:
    words = [*TOY, "trainer.max_epochs=1"]
    assert command(["train", *words, "seed=1"], tmp_path)[0] == 0
    before = records(tmp_path / "runs")
    code, said = command(["train", "-m", *words, "seed=shuffle(range(3))"], tmp_path)
    assert code == 0
    assert said.count("already finished") == 1
    assert "3 finished" in said
    after = records(tmp_path / "runs")
    assert len(after) == 3
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    "words",
    [["seed=0,1", "hydra.sweep.subdir=same"], ["model.order=raster,transposed", "hydra.sweep.subdir='${seed}'"]],
)
def test_two_jobs_in_one_folder_are_refused(words: list[str], tmp_path: Path) -> None:
    code, said = command(["train", "-m", *TOY, "trainer.max_epochs=1", *words], tmp_path)
    assert code == 1
    assert "1 finished, 1 failed" in said
    assert "holds another run" in said
    assert len(records(tmp_path / "runs")) == 1


def test_a_sweep_of_no_jobs_is_said(tmp_path: Path) -> None:
    code, said = command(["train", "-m", *TOY, "seed=range(0)"], tmp_path)
    assert code == 1
    assert "no jobs" in said


def test_a_time_in_a_folder_s_name_is_the_same_for_all(tmp_path: Path) -> None:
    subdir = "hydra.sweep.subdir='${now:%f}-${seed}'"
    code, said = command(["train", "-m", *TOY, "trainer.max_epochs=1", "seed=0,1", subdir], tmp_path)
    assert code == 0, said
    assert "2 finished" in said


def test_the_folder_that_the_user_names_is_used(tmp_path: Path) -> None:
    words = [*SWEEP, "+callbacks.fault.kind=none", "seed=0,1", "hydra.sweep.dir=a b/mine"]
    assert command(words, tmp_path)[0] == 0
    mine = tmp_path / "a b/mine"
    before = records(mine)
    assert len(before) == 2
    assert command(words, tmp_path)[0] == 0
    assert records(mine) == before
    assert command([*words, "optimizer.lr=0.02"], tmp_path)[0] == 0
    assert len(records(mine)) == 4


def at_home(home: str) -> None:
    importable()
    os.environ["HOME"] = home


def test_a_tilde_is_the_home_folder_and_the_sweep_is_found_there(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for expected in ("1 finished", "already finished"):
        words = [*SWEEP, "+callbacks.fault.kind=none", "seed=0", "paths.runs=~/mine"]
        code, said = finish(words, tmp_path, partial(at_home, str(home)))
        assert code == 0
        assert expected in said
    assert len(list(home.glob("mine/*/result.json"))) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["home"]


@pytest.mark.parametrize("flag", ["--config-name", "--config-path"])
def test_the_configuration_cannot_be_replaced(flag: str, tmp_path: Path) -> None:
    code, said = command([*SWEEP, "optimizer.lr=-1", flag, "other"], tmp_path)
    assert code == 1
    assert "--config-dir=FOLDER" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("launcher", sorted(path.stem for path in (ROOT / "conf/hydra/launcher").glob("*.yaml")))
def test_a_launcher_composes(launcher: str) -> None:
    pytest.importorskip(sweeps.EXTRAS[launcher][0], reason=f"the extra {sweeps.EXTRAS[launcher][1]} is not installed")
    words = [f"hydra/launcher={launcher}", "data=toy"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        target = compose("train", overrides=words, return_hydra_config=True).hydra.launcher._target_
    assert target.partition(".")[2].startswith(sweeps.EXTRAS[launcher][0].partition(".")[2])


def test_a_damaged_record_is_named_with_its_cure(tmp_path: Path) -> None:
    words = [*SWEEP, "+callbacks.fault.kind=none", "seed=0"]
    assert command(words, tmp_path)[0] == 0
    (record,) = tmp_path.glob("runs/*/result.json")
    record.write_text("{")
    code, said = command(words, tmp_path)
    assert code == 1
    assert "remove the file, and the same command makes it again" in " ".join(said.split())
    record.unlink()
    assert command(words, tmp_path)[0] == 0
    assert json.loads(record.read_text())["nll"]


@pytest.mark.parametrize("more", [[], ["hydra.job.chdir=true"]])
def test_no_secret_of_a_command_line_stays_in_its_folder(more: list[str], tmp_path: Path) -> None:
    code, said = command([*SWEEP, "+callbacks.fault.kind=none", "seed=0", "+api_key=SECRET123", *more], tmp_path)
    assert code == 0, said
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "checkpoints"]
    assert len(files) > 5
    assert [path for path in files if b"SECRET123" in path.read_bytes()] == []


def test_resume_never_starts_anew(tmp_path: Path) -> None:
    words = [*SWEEP, "+callbacks.fault.kind=none", "seed=0", "resume=never"]
    for expected in (1, 2):
        code, said = command(words, tmp_path)
        assert code == 0, said
        assert len(list(tmp_path.glob("runs/*/result.json"))) == expected


@pytest.mark.slow
def test_a_single_run_is_resumed_where_it_was_killed(tmp_path: Path) -> None:
    words = ["train", *TOY, "trainer.max_epochs=20", FAULT, "+callbacks.fault.kind=slow"]
    process = start(words, tmp_path, None, importable)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/last.ckpt")), process.is_alive)
    process.kill()
    process.join()
    (run,) = (tmp_path / "runs").iterdir()
    assert command([*words, "resume=never"], tmp_path)[0] == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {run.name, f"{run.name}-2"}
    assert command(words, tmp_path)[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert "resuming from" in (run / "train.log").read_text()
    assert (run / "result.json").is_file()


def test_every_job_has_a_wandb_run_of_its_own(tmp_path: Path) -> None:
    words = ["train", "-m", *TOY, "logger=wandb", "trainer.max_epochs=1", "seed=0,1"]
    code, said = finish(words, tmp_path, offline)
    assert code == 0, said
    jobs = list(tmp_path.glob("runs/fvsbn-*"))
    assert len(jobs) == 2
    for job in jobs:
        assert len(list(job.glob("wandb/offline-run-*/*.wandb"))) == 1


def offline() -> None:
    os.environ["WANDB_MODE"] = "offline"


def test_whoever_stops_reading_stops_no_work(tmp_path: Path) -> None:
    words = ["train", "-m", *TOY, "trainer.max_epochs=1", "seed=0,1,2"]
    process = launched(words, tmp_path)
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0
    assert len(records(tmp_path / "runs")) == 3


def test_a_closed_output_is_no_fault(tmp_path: Path) -> None:
    main = "import sys; sys.stdout = sys.stderr = None; from chainrule.cli import main; main()"
    words = ["train", *TOY, "trainer.max_epochs=1", "trainer.enable_progress_bar=true"]
    assert subprocess.run([sys.executable, "-c", main, *words], cwd=tmp_path, check=False).returncode == 0
    assert len(records(tmp_path / "runs")) == 1


# ---- extras -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "choice", "extra"),
    [
        ([*SWEEP, "hydra/launcher=ray"], "ray", "ray"),
        ([*SWEEP, "hydra/launcher=joblib"], "joblib", "joblib"),
        ([*SWEEP, "hydra/launcher=slurm"], "slurm", "slurm"),
        (["search", "data=toy"], "search", "optuna"),
    ],
)
def test_a_missing_extra_is_named_with_its_cure(
    words: list[str], choice: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr("sys.argv", ["chainrule", *words])
    with pytest.raises(SystemExit, match=rf"^chainrule .*: {choice} needs .*: pip install 'chainrule\[{extra}\]'$"):
        cli.main()


def test_every_extra_that_is_named_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for _, extra in sweeps.EXTRAS.values()} <= set(extras)
    assert set(sweeps.EXTRAS) >= {path.stem for path in (ROOT / "conf/hydra/launcher").glob("*.yaml")}
