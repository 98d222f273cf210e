"""Sweeps by the real command: jobs fail, leave, are killed and interrupted; the same command again does the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from commands import finish, start
from faults import importable
from hydra import compose, initialize_config_dir
from zoo import ROOT

from chainrule import cli
from chainrule.runs import fingerprint as runs
from chainrule.training import sweep as sweeps

TOY = ["data=toy", "model=fvsbn", "logger=none", "trainer.enable_progress_bar=false", "samples=4"]
SECOND = "runs/sweep-*/*-1/checkpoints/last.ckpt"  # the second job is under way
FAULT = "+callbacks.fault._target_=faults.Fault"
SWEEP = ["train", "-m", *TOY, "trainer.max_epochs=2", FAULT]
SLOW = ["train", "-m", *TOY, "trainer.max_epochs=20", FAULT, "+callbacks.fault.kind=slow", "seed=range(3)"]


def command(words: list[str], cwd: Path) -> tuple[int, str]:
    return finish(words, cwd, importable)


def launched(words: list[str], cwd: Path) -> subprocess.Popen[str]:
    """The command as users start it: multiprocessing would wait for the workers of a launcher, which wait for jobs."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # background jobs are deaf to it
    command = [sys.executable, "-c", f"{heed}; from chainrule.cli import main; main()", *words]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def states(folder: Path) -> dict[str, str]:
    """What became of each job, by what is in its folder."""
    jobs = [sweeps.Job(**job) for job in json.loads((folder / "sweep.json").read_text())["jobs"]]
    sweep = sweeps.Sweep(folder, tuple(jobs))
    return {job.folder: str(sweep.state(job)) for job in jobs}


def records(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}


def only(folder: Path) -> Path:
    (sweep,) = folder.glob("runs/sweep-*")
    return sweep


def wait_for(condition: Callable[[], object], alive: Callable[[], bool], seconds: float = 300) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert alive()
        assert time.monotonic() < give_up
        time.sleep(0.02)


def half_way(cwd: Path, words: list[str]) -> tuple[ForkServerProcess, Path]:
    """A sweep whose first job has finished, and whose second has a checkpoint."""
    process = start(words, cwd, cwd / "output.txt", importable)
    wait_for(lambda: list(cwd.glob(SECOND)), process.is_alive)
    return process, only(cwd)


# ---- jobs that end badly ------------------------------------------------------------------------------


def test_a_sweep_finishes_what_can_be_and_says_what_failed_and_why(tmp_path: Path) -> None:
    kinds = "+callbacks.fault.kind=none,explode,leave,diverge,none"
    code, said = command([*SWEEP, kinds], tmp_path)
    assert code == 1
    assert "2 finished, 3 failed" in said
    assert "out of luck" in said
    assert "and more about it" not in said.rpartition("finished, 3 failed")[2]  # one line of the reason
    assert "sys.exit(0) was called" in said
    assert "Traceback" not in said
    sweep = only(tmp_path)
    assert states(sweep) == {
        "fvsbn-toy-s0-0": "finished", "fvsbn-toy-s0-1": "failed", "fvsbn-toy-s0-2": "failed",
        "fvsbn-toy-s0-3": "failed", "fvsbn-toy-s0-4": "finished",
    }  # fmt: skip
    assert "Traceback" in (sweep / "fvsbn-toy-s0-1/train.log").read_text()

    before = records(sweep)
    code, said = command([*SWEEP, kinds], tmp_path)
    assert code == 1
    assert only(tmp_path) == sweep
    assert records(sweep) == before


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_every_launcher_runs_a_sweep_to_its_end(launcher: str, tmp_path: Path) -> None:
    module, extra = sweeps.EXTRAS[launcher]
    if not find_spec(module):
        pytest.skip(f"the extra {extra} is not installed")
    words = [*SWEEP, "+callbacks.fault.kind=none,explode,leave,none", f"hydra/launcher={launcher}"]
    process = launched(words, tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 1
    assert "2 finished, 2 failed" in said
    assert list(states(only(tmp_path)).values()) == ["finished", "failed", "failed", "finished"]


@pytest.mark.slow
def test_a_job_that_is_killed_is_named(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra slurm is not installed")
    kinds = ["+callbacks.fault.kind=none,die", "hydra/launcher=submitit_local"]
    process = launched([*SWEEP, *kinds], tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 1
    assert "1 finished, 1 interrupted" in said
    assert "the launcher stopped" in said


# ---- sweeps that end badly ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_that_was_killed_does_only_the_rest(tmp_path: Path) -> None:
    process, sweep = half_way(tmp_path, SLOW)
    process.kill()
    process.join()
    assert list(states(sweep).values()) == ["finished", "interrupted", "never started"]
    before = records(sweep)

    code, said = command(SLOW, tmp_path)
    assert code == 0
    assert "3 finished" in said
    assert only(tmp_path) == sweep
    after = records(sweep)
    assert len(after) == 3
    assert {name: after[name] for name in before} == before
    assert "going on from" in (sweep / "fvsbn-toy-s1-1/train.log").read_text()
    assert "going on from" not in (sweep / "fvsbn-toy-s2-2/train.log").read_text()


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
    assert process.returncode == 128 + signal.Signals[name]
    assert "Traceback" not in said
    found = list(states(only(tmp_path)).values())
    if at_once == 1:
        assert found == ["finished", "interrupted", "never started"]
        assert "1 finished, 1 interrupted, 1 never started" in said
    else:  # which of them had time to finish is chance
        assert set(found) <= {"finished", "interrupted", "never started"}
        assert f"{found.count('interrupted')} interrupted" in said


@pytest.mark.slow
def test_sweeps_started_together_do_not_meet(tmp_path: Path) -> None:
    words = [*SWEEP, "+callbacks.fault.kind=slow", "seed=0,1"]
    together = [start(words, tmp_path, tmp_path / f"{i}.txt", importable) for i in range(2)]
    for process in together:
        process.join()
        assert process.exitcode == 0
    found = sorted(tmp_path.glob("runs/sweep-*"))
    assert len(found) == 2
    assert all(set(states(sweep).values()) == {"finished"} for sweep in found)


# ---- the same again, and what is not the same ---------------------------------------------------------


def test_the_folder_that_the_user_names_is_used(tmp_path: Path) -> None:
    words = [*SWEEP, "+callbacks.fault.kind=none", "seed=0,1", "hydra.sweep.dir=a b/mine"]
    assert command(words, tmp_path)[0] == 0
    mine = tmp_path / "a b/mine"
    before = records(mine)
    assert len(before) == 2
    assert command(words, tmp_path)[0] == 0
    assert records(mine) == before
    for other in (["optimizer.lr=0.02"], ["resume=never"]):
        code, said = command([*words, *other], tmp_path)
        assert code == 1
        assert "mine holds other runs" in said
        assert "hydra.sweep.dir" in said
        assert "Traceback" not in said
        assert records(mine) == before


def at_home(home: str) -> None:
    importable()
    os.environ["HOME"] = home


def test_a_tilde_is_the_home_folder_and_the_sweep_is_found_there(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for expected in ("1 finished", "finished already"):
        words = [*SWEEP, "+callbacks.fault.kind=none", "seed=0", "paths.runs=~/mine"]
        code, said = finish(words, tmp_path, partial(at_home, str(home)))
        assert code == 0
        assert expected in said
    assert len(list(home.glob("mine/sweep-*/*/result.json"))) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["home"]


def test_another_version_of_the_program_starts_a_sweep_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["data=toy"])
        before = runs.fingerprint(cfg)
        assert runs.fingerprint(cfg) == before
        monkeypatch.setattr(runs, "code_version", lambda: "another")
        assert runs.fingerprint(cfg) != before


def test_the_version_is_that_of_all_source_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    for file, text in (("runs.py", "a"), ("models/fvsbn.py", "b")):
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    versions = {runs.code_version.__wrapped__()}
    for change in (tmp_path / "models/fvsbn.py", tmp_path / "models/new.py"):
        change.write_text("changed")
        versions.add(runs.code_version.__wrapped__())
    assert len(versions) == 3


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


@pytest.mark.parametrize("content", ["x", "{}", "[]"])
def test_a_damaged_neighbour_is_passed_over(content: str, tmp_path: Path) -> None:
    (tmp_path / "runs/old").mkdir(parents=True)
    (tmp_path / "runs/old/sweep.json").write_text(content)
    code, said = command([*SWEEP, "+callbacks.fault.kind=none", "seed=0"], tmp_path)
    assert code == 0
    assert "old/sweep.json is damaged" in said
    code, said = command([*SWEEP, "+callbacks.fault.kind=none", "seed=0", "hydra.sweep.dir=runs/old"], tmp_path)
    assert code == 1
    assert "old/sweep.json is damaged: remove it" in said
    assert "Traceback" not in said


def test_a_damaged_record_is_named_with_its_cure(tmp_path: Path) -> None:
    words = [*SWEEP, "+callbacks.fault.kind=none", "seed=0"]
    assert command(words, tmp_path)[0] == 0
    (record,) = tmp_path.glob("runs/*/*/result.json")
    record.write_text("{")
    code, said = command(words, tmp_path)
    assert "result.json is damaged: remove it, and the same command makes it again" in " ".join(said.split())
    record.unlink()
    code, said = command(words, tmp_path)
    assert code == 0
    assert json.loads(record.read_text())["nll"]


def test_no_secret_of_a_command_line_stays_in_its_folder(tmp_path: Path) -> None:
    code, _ = command([*SWEEP, "+callbacks.fault.kind=none", "seed=0", "+api_key=SECRET123"], tmp_path)
    assert code == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "checkpoints"]
    assert len(files) > 5
    assert [path for path in files if b"SECRET123" in path.read_bytes()] == []


def test_resume_never_starts_anew(tmp_path: Path) -> None:
    words = [*SWEEP, "+callbacks.fault.kind=none", "seed=0", "resume=never"]
    for expected in (1, 2):
        assert command(words, tmp_path)[0] == 0
        assert len(list(tmp_path.glob("runs/sweep-*/*/result.json"))) == expected


@pytest.mark.slow
def test_a_single_run_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    words = ["train", *TOY, "trainer.max_epochs=20", FAULT, "+callbacks.fault.kind=slow"]
    process = start(words, tmp_path, None, importable)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/last.ckpt")), process.is_alive)
    process.kill()
    process.join()
    (run,) = (tmp_path / "runs").iterdir()
    assert command([*words, "resume=never"], tmp_path)[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert command(words, tmp_path)[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert "going on from" in (run / "train.log").read_text()
    assert (run / "result.json").is_file()


def test_jobs_are_those_that_hydra_makes_of_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", *TOY, "seed=range(2)", "model=fvsbn,tabular", "optimizer.lr=choice(0.1,0.2)", "hydra.sweep.dir=x"]
    with sweeps.arranged(words, cli.CONF) as (arranged, sweep):
        assert sweep is not None
        assert arranged[-1] == "hydra.sweep.dir='x'"
        assert [(job.folder, job.words) for job in sweep.jobs[:3]] == [
            ("fvsbn-toy-s0-0", "model=fvsbn seed=0 optimizer.lr=0.1"),
            ("fvsbn-toy-s0-1", "model=fvsbn seed=0 optimizer.lr=0.2"),
            ("fvsbn-toy-s1-2", "model=fvsbn seed=1 optimizer.lr=0.1"),
        ]
        assert len({job.fingerprint for job in sweep.jobs}) == len(sweep.jobs) == 8
        with pytest.raises(ValueError, match="x is in use"), sweeps.arranged(words, cli.CONF):
            pass


def test_every_job_has_a_wandb_run_of_its_own(tmp_path: Path) -> None:
    words = ["train", "-m", *TOY, "logger=wandb", "trainer.max_epochs=1", "seed=0,1"]
    code, said = finish(words, tmp_path, offline)
    assert code == 0, said
    for job in only(tmp_path).glob("fvsbn-*"):
        assert len(list(job.glob("wandb/offline-run-*/*.wandb"))) == 1


def offline() -> None:
    os.environ["WANDB_MODE"] = "offline"


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
