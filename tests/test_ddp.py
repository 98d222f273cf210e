"""Two processes train as one: the same numbers, one directory, one record, one W&B run."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import finish, start
from faults import importable
from test_wandb import parts, read

# 33 images a batch: the two shares differ by one, and the last batch of an epoch is short.
TOY = [
    "data=toy",
    "data.batch_size=33",
    "data.eval_batch_size=13",
    "samples=4",
    "trainer.max_epochs=3",
    "optimizer.lr=0.02",
]
MODELS = {
    "fvsbn": ["model=fvsbn", "optimizer=sgd", "optimizer.momentum=0.9", "trainer.gradient_clip_val=1"],
    "nade": ["model=nade", "model.hidden=8", "callbacks=[ema]", "callbacks.ema.decay=0.9"],
}

pytestmark = pytest.mark.slow


def offline() -> None:
    os.environ["WANDB_MODE"] = "offline"


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


@pytest.mark.parametrize("model", MODELS)
def test_two_processes_give_the_numbers_of_one(model: str, tmp_path: Path) -> None:
    words = ["train", *TOY, *MODELS[model], "logger=wandb"]
    for name, more in {"one": [], "two": ["trainer=ddp", "trainer.devices=2"]}.items():
        code, said = finish([*words, *more, f"hydra.run.dir=runs/{name}"], tmp_path, offline)
        assert code == 0, said
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["one", "two"]
    one, two = tmp_path / "runs/one", tmp_path / "runs/two"
    for split in ("train", "valid", "test"):
        expected = record(one)["nll"][split]["mean"]
        assert record(two)["nll"][split]["mean"] == pytest.approx(expected, rel=1e-6)
    same = ("best_epoch", "epochs", "parameters", "kernel", "data")
    assert {key: record(two).get(key) for key in same} == {key: record(one).get(key) for key in same}

    weights = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (one, two)]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-6)

    ((expected_log,), (log,)) = ([read(part) for part in parts(run)] for run in (one, two))
    assert [row.keys() for row in log.history] == [row.keys() for row in expected_log.history]
    assert log.summary.keys() == expected_log.summary.keys()
    for row, expected_row in zip(log.history, expected_log.history, strict=True):
        for key in expected_row.keys() & {"train/nll", "val/nll", "lr", "epoch"}:
            assert row[key] == pytest.approx(expected_row[key], rel=1e-5)
    assert [row.keys() for row in rows(two)] == [row.keys() for row in rows(one)]
    for row, expected_row in zip(rows(two), rows(one), strict=True):
        for key in ("train/nll", "val/nll", "lr", "epoch", "step"):
            assert (row[key] == "") == (expected_row[key] == "")
            if row[key]:
                assert float(row[key]) == pytest.approx(float(expected_row[key]), rel=1e-5)
    said = (two / "train.log").read_text()
    assert said.count("epoch 1 of 3") == said.count("epoch 3 of 3") == 1


def test_it_combines_with_a_sweep(tmp_path: Path) -> None:
    faults = ["+callbacks.fault._target_=faults.Fault", "+callbacks.fault.kind=none,diverge,slow"]
    words = ["train", "-m", *TOY, *MODELS["fvsbn"], "logger=csv", "trainer=ddp", *faults]
    code, said = finish(words, tmp_path, importable)
    assert code == 1
    assert "2 finished, 1 failed" in said
    assert "Traceback" not in said.rpartition("finished")[2]
    assert len(list((tmp_path / "runs").iterdir())) == 3
    (failure,) = tmp_path.glob("runs/*/failure.txt")
    assert "is not finite" in failure.read_text()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_nobody_is_left_behind(name: str, tmp_path: Path) -> None:
    words = ["train", *TOY, "model=fvsbn", "logger=csv", "trainer=ddp", "trainer.max_epochs=200",
             "+callbacks.fault={_target_:faults.Fault,kind:slow}"]  # fmt: skip
    process = start(words, tmp_path, tmp_path / "output.txt", importable)
    while not list(tmp_path.glob("runs/*/checkpoints/last.ckpt")):
        assert process.is_alive()
        time.sleep(0.05)
    before = children(process.pid or 0)
    assert len(before) >= 2
    os.kill(process.pid or 0, signal.Signals[name])
    process.join(60)
    assert process.exitcode == {"SIGKILL": -9}.get(name, 128 + signal.Signals[name])
    give_up = time.monotonic() + 60
    while any(alive(child) for child in before):
        assert time.monotonic() < give_up
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
