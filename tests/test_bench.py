"""The benchmark: a small run of it by the command itself, its counts, its fits, and what it compares with."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from zoo import ROOT, build

from chainrule import cli
from chainrule.bench import baselines, growth, machine, memory, work
from chainrule.bench.clock import Clock, spread
from chainrule.bench.job import Job
from chainrule.bench.strokes import INK, shape_of, strokes
from chainrule.bench.targets import TARGETS, judged

SMALL = [
    "rounds=5", "seconds=0", "batch=4", "images=6", "epoch=12", "memory=false",
    "sizes={tabular:[{n:6}],fvsbn:[{n:16}],mlp:[{n:16,d:2}],nade:[{n:16,d:3},{n:9,d:2}]}",
    "growth_n={tabular:[4,6],fvsbn:[4,9],mlp:[4,9],nade:[4,9,16]}", "growth_d={mlp:[1,2],nade:[2,4]}",
]  # fmt: skip


Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Runs the command in this process, on one thread and with a small ceiling, and returns its record."""

    def call(*words: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["chainrule", "bench", f"hydra.run.dir={tmp_path / 'out'}", *words])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        cli.main()
        record: dict[str, Any] = json.loads((tmp_path / "out/bench.json").read_text())
        return record

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "MATRIX", 64)
    monkeypatch.setattr(work, "COPY", 1 << 12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other where the machine is busy
    yield call
    torch.set_num_threads(threads)


def test_a_small_run(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = bench(*SMALL)
    said = capsys.readouterr().out
    for word in ("Images per second", "One training step", "mixed precision", "An epoch", "Growth", "Figures to reach"):
        assert word in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"bench.json", "bench.png", "bench.log"}
    assert (tmp_path / "out/bench.png").read_bytes().startswith(b"\x89PNG")
    assert {
        "hardware",
        "versions",
        "git",
        "date",
        "instructions",
        "others_share",
        "seconds",
        "overrides",
        "config",
    } <= set(record)
    assert record["hardware"]["threads"] == torch.get_num_threads()
    assert record["ceiling"]["flops"] > 0 < record["ceiling"]["bytes"]
    check_models(record)
    check_parts(record)


def check_models(record: dict[str, Any]) -> None:
    sizes = [(m["model"], m["n"], m["d"], m["parameters"]) for m in record["models"]]
    assert sizes == [
        ("tabular", 6, None, 63), ("fvsbn", 16, None, 136), ("mlp", 16, 2, 2 * 120 + 16 * 5),
        ("nade", 16, 3, 2 * 48 + 3 + 16), ("nade", 9, 2, 2 * 18 + 2 + 9),
    ]  # fmt: skip
    for key in ("train_images_per_second", "score_images_per_second", "sample_images_per_second"):
        assert all(m[key] > 0 for m in record["models"])
    assert all(s["low"] <= s["median"] <= s["high"] for m in record["models"] for s in [m["latency_seconds"]])


def check_parts(record: dict[str, Any]) -> None:
    assert [r["name"] for r in record["nade"]["rivals"]] == ["kernel", "chunked", "cumsum", "loop", "rows", "unbound"]
    assert record["nade"]["rivals"][0]["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert record["precision"]["nll"]["bf16-mixed"] == pytest.approx(record["precision"]["nll"]["float32"], rel=0.02)
    assert set(record["lightning"]["seconds"]) == {"lightning", "bare"}
    assert {t["met"] for t in record["targets"]} == {None}  # no verdict at sizes that no target is about
    points = [(p["model"], p["against"], p["n"], p["d"]) for p in record["growth"]["points"]]
    assert len(points) == 13
    assert ("nade", "d", 16, 4) in points


def test_one_model_alone(bench: Bench) -> None:
    record = bench(*SMALL, "models=[tabular]", "growth=false")
    assert [m["model"] for m in record["models"]] == ["tabular"]
    assert not {"nade", "precision", "lightning", "growth"} & set(record)
    assert record["targets"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rounds=4"], "rounds must be a whole number of at least 5, got 4"),
        (["batch=2.5"], "batch must be a whole number"),
        (["seconds=-1"], "seconds must be a number of at least 0"),
        (["models=[nad]"], "'nad' is not one of tabular, fvsbn, mlp, nade"),
        (["device=tpu"], "device must be cpu or cuda, got 'tpu'"),
        (["device=cuda"], "device=cuda, but no CUDA GPU is at hand: use device=cpu"),
    ],
)
def test_mistakes(
    bench: Bench, tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        bench(*words)
    assert message in str(stop.value.code)
    assert not list(tmp_path.rglob("bench.json"))


# ---- what is compared -------------------------------------------------------------------------------


def loop(z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    return baselines.loop(z, W.t(), c, V, b)


@pytest.mark.parametrize("slow", [baselines.cumsum, loop, baselines.rows, baselines.unbound])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 4)])
def test_the_slow_ones_compute_the_same(slow: Callable[..., Tensor], shape: tuple[int, int]) -> None:
    model = build("nade", shape)
    W, c, V, b = parameters = [p.detach().requires_grad_() for p in model.parameters()]
    z = torch.randint(2, (7, model.dim), generator=torch.Generator().manual_seed(1)).double()
    weights = torch.linspace(-1, 2, z.numel(), dtype=torch.float64).view_as(z)
    expected = model.conditionals(z)
    expected_gradients = torch.autograd.grad((weights * expected).sum(), list(model.parameters()))
    logits = slow(z, W, c, V, b)
    gradients = torch.autograd.grad((weights * logits).sum(), parameters, materialize_grads=True)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    for found, gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-11, atol=1e-12)


def test_the_rivals_are_one_model() -> None:
    from chainrule.bench.speed import RIVALS

    one = _job("nade", 12, hidden=5)
    x = one.images(9)
    expected, *others = [one.changed(**change).density().log_prob(x) for change in RIVALS.values()]
    for found in others:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ---- counts and fits --------------------------------------------------------------------------------


def test_counts_by_hand() -> None:
    """B = 2, n = 3, d = 5, 4 pixels on: p = 30, P = 2·15 + 8 = 38, 6 hidden states of 5 units."""
    sizes = work.Sizes(batch=2, n=3, d=5, on=4)
    adam, adam_bytes = 14 * 38, 4 * 7 * 38
    assert work.kernel(sizes) == work.Work(
        flops=(2 * 30 + 20 + 30 * 20) + (4 * 30 + 2 * 20 + 30 * (20 + 4)) + adam,
        bytes=4 * (6 * 15 + 4 * 6) + adam_bytes,
    )
    forward, backward = 24 * 30, 10 * 30
    assert work.cumsum(sizes) == work.Work(forward + backward + adam, 4 * 24 * 30 + adam_bytes)
    assert work.chunked(sizes) == work.Work(
        2 * forward + backward + 2 * 2 * 30 + adam, 4 * (8 + 8 + 16) * 30 + adam_bytes
    )
    steps = (20 + 2 + 2) * 30 + (1 + 2 + 3 + 1 + 2) * 30
    assert work.unbound(sizes) == work.Work(steps + adam, 4 * (16 * 30 + 4 * 15) + adam_bytes)
    assert work.loop(sizes) == work.Work(steps + 2 * 3 * 15 + adam, 4 * (16 * 30 + 8 * 3 * 15) + adam_bytes)


def test_fractions_of_the_ceiling() -> None:
    assert work.Ceiling(flops=100, bytes=10).fractions(work.Work(flops=50, bytes=20), 2) == (0.25, 1)


def _points(name: str, against: str, sizes: list[tuple[int, int | None]]) -> list[dict[str, Any]]:
    """Exact parameter counts of real models, with times that grow as n²."""
    return [
        {"model": name, "against": against, "n": n, "d": d, "parameters": _count(name, n, d),
         "seconds": {"median": 1e-6 * n**2}}
        for n, d in sizes
    ]  # fmt: skip


def _count(name: str, n: int, d: int | None) -> int:
    return build(name, shape_of(n), **({} if d is None else {"hidden": d})).parameter_count


@pytest.mark.parametrize(
    ("name", "against", "sizes", "expected"),
    [
        ("fvsbn", "n", [(49, None), (196, None), (784, None), (1536, None)], 2),
        ("nade", "n", [(49, 4), (196, 4), (784, 4), (1536, 4)], 1),
        ("mlp", "n", [(49, 2), (196, 2), (400, 2), (784, 2)], 2),
        ("nade", "d", [(20, 50), (20, 100), (20, 200)], 1),
        ("tabular", "n", [(4, None), (8, None), (12, None), (14, None), (16, None)], 1),  # as 2^n
    ],
)
def test_parameters_grow_as_the_text_says(
    name: str, against: str, sizes: list[tuple[int, int | None]], expected: float
) -> None:
    (fit,) = growth.fits(_points(name, against, sizes))
    assert fit["exponents"]["parameters"] == pytest.approx(expected, abs=0.02)
    if against == "n" and name != "tabular":
        assert fit["exponents"]["seconds"] == pytest.approx(2)
        assert fit["remark"].startswith("time grows faster" if expected == 1 else "time grows as the parameters")


def test_exponents() -> None:
    x = np.array([1.0, 2, 4, 8, 16, 32])
    bent = np.maximum(7.0, x**3)  # a fixed cost at small x is not part of the fit
    assert growth.exponent(x, bent) == pytest.approx(3)
    assert growth.exponent(x, 2 ** (1.5 * x), exponential=True) == pytest.approx(1.5)
    assert growth.exponent(x[:1], bent[:1]) is None
    assert growth.exponent(x, bent - 7) is not None
    assert growth.exponent(x, 0 * x) is None


def test_targets() -> None:
    nade = _job("nade", 784, batch=100, hidden=500)
    lines = judged({"loop": (nade, spread([49.0, 50, 51])), "sampling": (nade, spread([2.1]))})
    assert [line["met"] for line in lines] == [True, False]
    assert [line["what"].split()[0] for line in lines] == ["NADE-500", "NADE-500"]
    assert judged({"loop": (nade.changed(hidden=20), spread([1.0]))})[0]["met"] is None
    assert judged({"loop": (nade, spread([50.0]))}, others=0.04)[0]["met"] is True
    assert judged({"loop": (nade, spread([50.0]))}, others=0.4)[0]["met"] is None  # not on a busy machine
    assert not TARGETS["memory"].met(150)


def test_what_others_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat, second = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(machine, "STAT", stat)
    stat.write_text("cpu 0 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(os, "times", lambda: (0.0, 0.0, 0.0, 0.0, 0.0))
    others = machine.Others()
    # Of 20 seconds, 9 user, 1 system and 10 idle; 6 of the 10 busy ones are ours.
    stat.write_text(f"cpu {9 * second} 0 {second} {7 * second} {3 * second} 0 0 0 5 0\n")
    monkeypatch.setattr(os, "times", lambda: (4.0, 1.0, 1.0, 0.0, 99.0))
    assert others.share() == pytest.approx(0.2)
    stat.unlink()
    assert others.share() is None
    assert machine.Others().share() is None


# ---- clock, images, memory --------------------------------------------------------------------------


def test_actions_take_turns() -> None:
    said: list[str] = []
    seconds = Clock(rounds=5, seconds=0).alternate({"a": lambda: said.append("a"), "b": lambda: said.append("b")})
    assert said == ["a"] * 2 + ["b"] * 2 + ["a", "b"] * 5
    assert seconds["a"].shape == seconds["b"].shape == (5,)
    assert spread([3.0, 1, 2]).median == 2


@pytest.mark.parametrize("n", [1, 7, 16, 49, 784, 3072])
def test_strokes_have_as_much_ink_as_digits(n: int) -> None:
    shape = shape_of(n)
    x = strokes(200, shape, seed=3)
    assert math.prod(shape) == n
    assert x.shape == (200, n)
    assert set(x.unique().tolist()) <= {0, 1}
    assert torch.equal(x, strokes(200, shape, seed=3))
    assert not torch.equal(x[:, : n - 1], strokes(200, shape, seed=4)[:, : n - 1]) or n < 2
    if n >= 49:
        assert x.float().mean().item() == pytest.approx(INK, abs=0.015)
        # In strokes: a pixel beside one that is on is on far more often than others.
        right = x.view(-1, *shape)[:, :, 1:][x.view(-1, *shape)[:, :, :-1] == 1]
        assert right.float().mean() > 2 * INK


def test_memory_is_measured_in_another_process() -> None:
    small, large = memory.peaks([_job("fvsbn", n) for n in (16, 1600)])
    parameters = 4 * 1600 * 1601 // 2
    assert small < 3e7
    assert 3 * parameters < large < 20 * parameters  # the gradient and two moments at least


def test_a_failed_measurement_is_no_number() -> None:
    with pytest.raises(RuntimeError, match="a truth table over n = 36 pixels"):
        memory.peak(_job("tabular", 36))


def _job(name: str, n: int, batch: int = 4, **model: object) -> Job:
    cfg = OmegaConf.load(ROOT / "conf/model" / f"{name}.yaml")
    optimizer = OmegaConf.load(ROOT / "conf/optimizer/adamw.yaml")
    plain = [OmegaConf.to_container(c) for c in (cfg, optimizer)]
    return Job(model=plain[0] | model, n=n, optimizer=plain[1], batch=batch, seed=0)  # type: ignore[operator, arg-type]
