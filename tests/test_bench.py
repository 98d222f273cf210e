"""The benchmark: a small run of it by the command itself, its rivals, its fits, and the documents made from it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from zoo import MODELS, ROOT, build

from chainrule import cli
from chainrule.bench import roofline, table
from chainrule.bench.cases import INK, Case
from chainrule.bench.growth import curves, fit
from chainrule.bench.rivals import BY_PIXELS, RIVALS
from chainrule.bench.run import measure
from chainrule.bench.timing import Timer, quartiles
from chainrule.reporting.growth import claimed, exponent, growth_figure

SMALL = [
    "rounds=3", "seconds=0", "batch=4", "images=6", "zoo.mlp.hidden=2", "zoo.nade.hidden=3", "zoo.made.hidden=[8,9]",
    "zoo.deep_nade.hidden=[7,6]",
    "zoo.pixelcnn.channels=4", "zoo.pixelcnn.blocks=1",
    "zoo.transformer.width=16", "zoo.transformer.layers=1",
    "pixels={tabular:6,fvsbn:16,mlp:16,nade:16,made:16,deep_nade:16,pixelcnn:16,transformer:16}",
    "growth_n={tabular:[4,6],fvsbn:[4,9],mlp:[4,9],nade:[4,9,16],made:[4,9],pixelcnn:[4,16],transformer:[4,16]}",
    "growth_d={mlp:[1,2],nade:[2,4],pixelcnn:[2,3],transformer:[16,32]}",
]  # fmt: skip
DOCUMENTED: dict[str, Any] = json.loads((ROOT / "docs/bench.json").read_text())

Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Runs the command in this process, on one thread and with a small ceiling, and returns its record."""

    def call(*overrides: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["chainrule", "bench", f"hydra.run.dir={tmp_path / 'out'}", *overrides])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        cli.main()
        record: dict[str, Any] = json.loads((tmp_path / "out/bench.json").read_text())
        return record

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(roofline, "MATRIX", 64)
    monkeypatch.setattr(roofline, "COPY", 1 << 12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other where the machine is busy
    yield call
    torch.set_num_threads(threads)


def test_a_small_run(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = bench(*SMALL)
    printed = " ".join(capsys.readouterr().out.split())
    for title in ("images per second", "sampling 6 images", "as they are usually written", "growth of a training step"):
        assert title in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"bench.json", "bench.md", "bench.png", "bench.log"}
    assert (tmp_path / "out/bench.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/bench.md").read_text().strip() == table.render(record, "markdown")
    assert {"hardware", "versions", "git", "date", "seconds", "overrides", "config"} <= set(record)
    assert [(m["model"], m["n"], m["d"], m["parameters"]) for m in record["models"]] == [
        ("tabular", 6, None, 63), ("fvsbn", 16, None, 136), ("mlp", 16, 2, 2 * 120 + 16 * 5),
        ("nade", 16, 3, 2 * 48 + 3 + 16), ("made", 16, [8, 9], ANY), ("deep_nade", 16, [7, 6], ANY),
        ("pixelcnn", 16, 4, ANY),
        ("transformer", 16, 16, ANY),
    ]  # fmt: skip
    for m in record["models"]:
        assert all(m[f"{what}_images_per_second"] > 0 for what in ("train", "score", "sample"))
        assert 0 < m["sample_over_pass"]["low"] <= m["sample_over_pass"]["median"] <= m["sample_over_pass"]["high"]
        assert m["bound_seconds"] > 0
    assert [r["rival"] for r in record["rivals"]] == [rival for rivals in RIVALS.values() for rival in rivals]
    points = [(p["model"], p["against"], p["n"], p["d"]) for p in record["growth"]["points"]]
    assert len(points) == 23
    assert ("nade", "d", 16, 4) in points
    assert ("nade", "n", 9, 3) in points
    assert ("pixelcnn", "d", 16, 3) in points


def test_another_model_is_one_override(bench: Bench) -> None:
    record = bench(*SMALL, "+model@zoo.mine=nade", "+pixels.mine=9", "models=[mine]", "+width.mine=init_scale")
    assert [(m["model"], m["n"], m["d"]) for m in record["models"]] == [("mine", 9, 0.01)]
    assert record["rivals"] == record["growth"]["points"] == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rounds=0"], "rounds must be a whole number of at least 1, got 0"),
        (["batch=2.5"], "batch must be a whole number"),
        (["seconds=-1"], "seconds must be a number of at least 0"),
        (["models=[nad]"], "'nad' is not one of tabular, fvsbn, mlp, nade, made, deep_nade, pixelcnn, transformer"),
        (["pixels.nade=7.5"], "pixels.nade must be a whole number"),
        (["growth_n.nade=49"], "growth_n.nade must be a list of sizes, got 49"),
        (["growth_d.nade=[8,x]"], "growth_d.nade must be a whole number"),
        (["device=tpu"], "device must be cpu or cuda, got 'tpu'"),
        (["device=cuda"], "device=cuda, but no CUDA"),
    ],
)
def test_mistakes(
    bench: Bench, tmp_path: Path, overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        bench(*overrides)
    assert message in str(stop.value.code)
    assert not list(tmp_path.rglob("bench.json"))


# ---- what is compared -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rival"), [(name, rival) for name, rivals in RIVALS.items() for rival in rivals if rival != BY_PIXELS]
)
@pytest.mark.parametrize("shape", [(2, 2), (4, 6)])
def test_a_rival_computes_the_same(name: str, rival: str, shape: tuple[int, int]) -> None:
    model = build(name, shape)
    other = RIVALS[name][rival](model)
    x = torch.randint(2, (7, model.dim), generator=torch.Generator().manual_seed(1)).double()
    z = x[:, model.order]
    torch.testing.assert_close(other.conditionals(z), model.conditionals(z), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(other.loss(z), -model.log_prob(x), rtol=1e-11, atol=1e-11)
    assert all(gradient.any() for gradient in torch.autograd.grad(other.loss(z).sum(), other.parameters))
    assert {id(p) for p in other.parameters}.isdisjoint(map(id, model.parameters()))  # trained apart
    assert other.passes in (1, model.dim)


@pytest.mark.parametrize("patch", [1, 2])
def test_the_rival_of_pixelcnn_sees_as_far(patch: int) -> None:
    model = build("pixelcnn", (4, 6), patch=patch, first=[2, 5], window=[2, 3], width=3)
    z = torch.randint(2, (5, 24), generator=torch.Generator().manual_seed(1)).double()
    rival = RIVALS["pixelcnn"]["masked convolutions"](model)
    torch.testing.assert_close(rival.conditionals(z), model.conditionals(z), rtol=1e-11, atol=1e-11)
    assert rival.passes == 24 // patch**2


def test_the_rival_over_single_pixels_is_as_wide_and_deep_and_sees_as_many_places() -> None:
    model = build("pixelcnn", (4, 6), channels=4, blocks=2, patch=2, first=[2, 5], window=[2, 3], width=3)
    rival = RIVALS["pixelcnn"][BY_PIXELS](model)
    wanted = build("pixelcnn", (4, 6), channels=4, blocks=2, patch=1, first=[2, 5], window=[2, 3], width=3)
    assert [p.shape for p in rival.parameters] == [p.shape for p in wanted.parameters()]
    assert rival.conditionals(torch.zeros(3, 24, dtype=torch.float64)).shape == (3, 24)
    assert rival.passes == 24


def test_rivals_are_of_models_that_exist() -> None:
    assert set(RIVALS) <= set(MODELS)


def test_actions_take_turns() -> None:
    called: list[str] = []
    seconds = Timer(rounds=5, seconds=0).alternate({"a": lambda: called.append("a"), "b": lambda: called.append("b")})
    assert called == ["a"] * 2 + ["b"] * 2 + ["a", "b"] * 5
    assert seconds["a"].shape == seconds["b"].shape == (5,)
    assert quartiles(np.array([3.0, 1, 2])) == {"median": 2, "low": 1.5, "high": 2.5}


def test_ratios_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that gets slower from round to round, the k-th action takes k + 1 times as long as the first."""
    slower = np.array([1.0, 10, 100])
    monkeypatch.setattr(Timer, "alternate", lambda self, actions: {a: (i + 1) * slower for i, a in enumerate(actions)})
    model, rivals = measure(case("nade", 16, hidden=3), 6, Timer(3, 0), roofline.Ceiling(1e9, 1e9))
    exact = [r["ratio"] for r in rivals] + [model["sample_over_pass"], model["n_passes_over_sample"]]
    assert [ratio["median"] for ratio in exact] == [2, 3, 4, 5, 3 / 2, 16 * 2 / 3]
    assert all(ratio["low"] == ratio["median"] == ratio["high"] for ratio in exact)
    # the rivals' passes come after score, pass, sample and one: 5, 6, … against sample, 3; two of them need n passes
    assert [r["sampling_ratio"]["median"] for r in rivals] == pytest.approx([5 / 3, 2, 16 * 7 / 3, 16 * 8 / 3])


@pytest.mark.parametrize("n", [1, 7, 16, 49, 784, 3072])
def test_synthetic_images_have_as_much_ink_as_digits(n: int) -> None:
    one = case("nade", n)
    x = one.images(50)
    assert x.shape == (50, n)
    assert one.shape[0] * one.shape[1] == n
    assert x.sum(1).unique().tolist() == [max(1, round(INK * n))]
    assert torch.equal(x, case("nade", n).images(50))
    if n >= 49:  # in blobs: a pixel beside one that is on is on far more often than others
        grid = x.view(-1, *one.shape)
        assert grid[:, :, 1:][grid[:, :, :-1] == 1].float().mean() > 2 * INK


# ---- roofline and growth ----------------------------------------------------------------------------


def test_the_bound_is_the_slower_of_products_and_memory() -> None:
    top = roofline.Ceiling(flops=100, bytes=10)
    assert top.seconds(flops=500, parameters=1) == 5
    assert top.seconds(flops=100, parameters=2) == 8
    a, b = torch.ones(3, 5), torch.ones(5, 7, requires_grad=True)
    assert roofline.count_flops(lambda: (a @ b).sum().backward()) == 2 * (2 * 3 * 5 * 7)


def test_exponents() -> None:
    x = np.array([1.0, 2, 4, 8, 16, 32])
    bent = np.maximum(7.0, x**3)  # a fixed cost at small x is not part of the fit
    assert exponent(x, bent) == pytest.approx(3)
    assert exponent(x, 2 ** (1.5 * x), exponential=True) == pytest.approx(1.5)
    assert exponent(x[:1], bent[:1]) is None
    assert exponent(x, 0 * x) is None


def test_what_a_claim_says() -> None:
    x = np.array([1.0, 2, 3])
    for claim, against_n, against_d in (("nd", 1, 1), ("n²d", 2, 1), ("n²", 2, 0), ("d²", 0, 2), ("nd³", 1, 3)):
        assert claimed(claim, "n", x) == pytest.approx(x**against_n)
        assert claimed(claim, "d", x) == pytest.approx(x**against_d)
    assert claimed("2ⁿ", "n", x) == pytest.approx(2**x)


def test_parameters_grow_as_the_class_says() -> None:
    """Over the sizes that the benchmark ships with, exactly counted; times are made to grow as x^1.5."""
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        found = list(curves(compose("bench")))
    assert {(name, variable) for name, variable, _ in found} >= {("tabular", "n"), ("mlp", "d"), ("nade", "n")}
    for name, variable, cases in found:
        counts = {size: one.density().parameter_count for size, one in cases.items()}
        growth = next(iter(cases.values())).density().growth or ""
        fitted = fit(
            [
                {"model": name, "against": variable, variable: x, "parameters": count, "seconds": {"median": x**1.5}}
                for x, count in counts.items()
            ],
            growth,
        )
        one, two = claimed(growth, variable, np.array([1.0, 2.0]))
        if growth:
            assert fitted["exponents"]["parameters"] == pytest.approx(np.log2(two / one), abs=0.02)
        assert fitted["exponents"]["seconds"] == pytest.approx(1.5) or fitted["base"] == 2


def case(name: str, n: int, **model: object) -> Case:
    files = {"model": f"model/{name}", "optimizer": "optimizer/adamw"}
    plain: Any = {key: OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/{f}.yaml")) for key, f in files.items()}
    return Case(name=name, model=plain["model"] | model, n=n, optimizer=plain["optimizer"], batch=4)


# ---- documents --------------------------------------------------------------------------------------


def test_the_tables_in_the_docs_are_those_of_the_record() -> None:
    assert table.render(DOCUMENTED, "markdown") in (ROOT / "docs/benchmarks.md").read_text()


def test_the_figure_shows_what_was_measured() -> None:
    points, fits = DOCUMENTED["growth"]["points"], DOCUMENTED["growth"]["fits"]
    *growth, rivals = growth_figure(DOCUMENTED).axes
    assert [(ax.get_title(loc="left"), ax.get_xlabel()[0]) for ax in growth] == [
        ("parameters", "n"), ("training step, ms", "n"), ("parameters", "d"), ("training step, ms", "d"),
    ]  # fmt: skip
    times = [line for line in growth[1].lines if line.get_linestyle() == "-"]
    measured = [[1e3 * p["seconds"]["median"] for p in points if (p["model"], p["against"]) == (m, "n")]
                for m in dict.fromkeys(p["model"] for p in points)]  # fmt: skip
    assert [line.get_ydata().tolist() for line in times] == measured
    claiming = [line for line, fit in zip(times, (f for f in fits if f["against"] == "n"), strict=True) if fit["claim"]]
    for line, dashed in zip(claiming, [line for line in growth[1].lines if line.get_linestyle() == "--"], strict=True):
        assert dashed.get_ydata()[-1] == pytest.approx(line.get_ydata()[-1])
    nade = next(f for f in fits if (f["model"], f["against"]) == ("nade", "n"))
    texts = [text.get_text() for text in growth[1].get_legend().get_texts()]
    assert f"nade $n^{{{nade['exponents']['seconds']:.2f}}}$" in texts
    assert len(rivals.patches) == len(DOCUMENTED["rivals"])
    assert growth_figure({"models": [], "rivals": []}).axes == []
