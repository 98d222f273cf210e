"""The text's claims: exact figures against brute force, and verdicts that turn when the figures do."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from zoo import MODELS, ROOT, build, every_image

from chainrule import cli
from chainrule.bench import claims as study
from chainrule.bench.claims import Measured
from chainrule.data import Toy
from chainrule.evaluation.empirical import Empirical
from chainrule.models.tabular import Tabular

CLAIMS: dict[str, dict[str, Any]] = {
    claim["claim"]: claim for claim in OmegaConf.to_container(OmegaConf.load(ROOT / "conf/claims.yaml").claims)
}


# ---- the empirical distribution ---------------------------------------------------------------------


def toy(side: int = 3) -> Toy:
    data = Toy(side=side)
    data.setup("test")
    return data


@pytest.mark.parametrize("side", [2, 3, 4])
def test_the_entropy_of_bars_and_stripes(side: int) -> None:
    found = Empirical.of(toy(side).train)
    assert found.entropy == pytest.approx(toy(side).entropy, abs=1e-12)
    assert (found.distinct, found.total) == (2 ** (side + 1) - 2, len(toy(side).train))


def test_entropy_at_its_limits() -> None:
    images = every_image().to(torch.uint8)
    assert Empirical.of(images).entropy == pytest.approx(math.log(512), abs=1e-12)
    assert Empirical.of(images[:1].expand(7, -1)).entropy == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_kl_is_the_sum_over_all_images(name: str) -> None:
    model = build(name)
    every = every_image(model.dim)
    images = every[torch.randint(len(every), (300,), generator=torch.Generator().manual_seed(1)) // 3]
    counts = Counter(tuple(image.tolist()) for image in images)
    expected = 0.0
    for x in every:
        p = counts[tuple(x.tolist())] / len(images)
        if p > 0:
            expected += p * (math.log(p) - model.log_prob(x[None]).item())
    found = Empirical.of(images.to(torch.uint8))
    assert found.cross_entropy(model) - found.entropy == pytest.approx(expected, abs=1e-9)
    assert found.cross_entropy(model) == pytest.approx(-model.log_prob(images).mean().item(), abs=1e-9)
    assert found.cross_entropy(model.float()) - found.entropy == pytest.approx(expected, abs=1e-5)


def test_a_truth_table_fits_the_empirical_distribution() -> None:
    images = toy().train
    table = Tabular(shape=(3, 3), smoothing=0).double()
    table.fit(images)
    found = Empirical.of(images)
    assert found.cross_entropy(table) == pytest.approx(found.entropy, abs=1e-9)


def test_images_of_many_pixels_are_told_apart() -> None:
    images = torch.zeros(4, 784, dtype=torch.uint8)
    images[1, 783] = images[2, 0] = images[3, 0] = 1
    found = Empirical.of(images)
    assert (found.distinct, found.total) == (3, 4)
    assert sorted(found.counts.tolist()) == [1, 1, 2]
    assert torch.equal(found.images[found.counts == 2], images[2:3])


# ---- verdicts ---------------------------------------------------------------------------------------

HARD = np.random.default_rng(0).normal(10, 3, 400)  # the NLL of each image, as far as all models share it
COUNTS = {
    "tabular": ("2ⁿ", lambda n, d: 2**n - 1), "fvsbn": ("n²", lambda n, d: n * (n + 1) // 2),
    "mlp": ("n²d", lambda n, d: d * n * (n - 1) // 2 + n * (2 * d + 1)), "nade": ("nd", lambda n, d: 2 * n * d + d + n),
}  # fmt: skip


def model(name: str, n: int, d: int | None = None, mean: float = 10.0, **changes: object) -> Measured:
    growth, count = COUNTS[name]
    made = Measured(
        model=name, n=n, d=d, parameters=count(n, d or 0), growth=growth, valid=mean, train=mean, test=mean,
        test_stderr=0.1, kl_train=0.5, kl_test=0.5, images_per_second=1.0,
        seconds={"score": 1.0, "sample": 1.0, "pass": 1.0, "many": 1.0},
        nll=HARD + mean - 10 + np.random.default_rng(n + (d or 0)).normal(0, 0.1, len(HARD)),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def scored(n: int, *models: Measured, distinct: int = 10) -> study.TestSet:
    """A test set of 100 images, ``distinct`` of which differ: an entropy of ln 10 = 2.30 nats as it comes."""
    images = torch.arange(100)[:, None].remainder(distinct).div(2 ** torch.arange(7), rounding_mode="floor") % 2
    split = Empirical.of(images.to(torch.uint8))
    return study.TestSet("static", n, "ab" * 32, split, split, models)


FVSBN, SMALL, LARGE = model("fvsbn", 16), model("nade", 16, 3), model("nade", 16, 50)
GOOD, BAD = model("nade", 16, 50, mean=9.0), model("nade", 16, 3, mean=11.0)
MLP = {mean: model("mlp", 16, 4, mean=mean) for mean in (9.0, 11.0)}
NOISE = np.tile([0.1, -0.1], len(HARD) // 2)  # standard error 0.1 / √399 = 0.005


def near(shift: float) -> Measured:
    """A NADE that is better or worse than FVSBN by a few standard errors."""
    return dataclasses.replace(model("nade", 16, 5), nll=FVSBN.nll + shift + NOISE)


def timed(n: int, sample: float, passes: float) -> study.TestSet:
    return scored(n, model("nade", n, 3, seconds={"score": 1.0, "sample": sample, "pass": passes}))


VERDICTS: dict[str, list[tuple[list[study.TestSet], str]]] = {
    "a truth table can represent any distribution": [
        ([scored(16, model("tabular", 16, kl_train=0.022))], "holds"),
        ([scored(16, model("tabular", 16, kl_train=0.024))], "does not hold"),
        ([scored(16, model("tabular", 16, kl_train=0.024), distinct=50)], "holds"),
    ],
    "a truth table needs exponentially many parameters": [
        ([scored(16, model("tabular", 16))], "holds"),
        ([scored(16, model("tabular", 16, parameters=300))], "does not hold"),
    ],
    **{
        claim: [
            ([scored(16, model(name, 16, d)), scored(784, model(name, 784, d))], "holds"),
            ([scored(784, model(name, 784, d))], "not measured"),
            ([scored(16, model(name, 16, d)), scored(784, model(name, 784, d, parameters=10**8))], "does not hold"),
        ]
        for name, d, claim in (
            ("fvsbn", None, "FVSBN has O(n²) parameters"),
            ("mlp", 4, "MLP, a network per pixel, has O(n²d) parameters"),
            ("nade", 40, "NADE has O(nd) parameters"),
        )
    },
    "MLP is more expressive than FVSBN": [  # on training and on test images, at every n
        ([scored(16, FVSBN, MLP[9])], "holds"),
        ([scored(16, FVSBN, MLP[11])], "does not hold"),
        ([scored(16, FVSBN, dataclasses.replace(MLP[11], train=5.0))], "depends"),
        ([scored(16, FVSBN, MLP[9]), scored(49, model("fvsbn", 49), model("mlp", 49, 4, mean=11.0))], "depends"),
    ],
    "NADE is still better than FVSBN": [
        ([scored(16, FVSBN, near(-0.02))], "holds"),
        ([scored(16, FVSBN, near(-0.005))], "does not hold"),  # a difference within its error is none
        ([scored(16, FVSBN, near(+0.02))], "does not hold"),
        ([scored(16, FVSBN, BAD, GOOD)], "holds"),  # the best on validation is compared
        ([scored(16, FVSBN, dataclasses.replace(BAD, valid=8.0), GOOD)], "does not hold"),
    ],
    "NADE has fewer parameters than FVSBN": [
        ([scored(16, SMALL, FVSBN)], "holds"),
        ([scored(16, LARGE, FVSBN)], "does not hold"),
        ([scored(16, SMALL, FVSBN), scored(16, LARGE, FVSBN)], "depends"),
    ],
    "NADE has fewer parameters than MLP": [
        ([scored(16, LARGE, model("mlp", 16, 16))], "holds"),
        ([scored(16, LARGE, model("mlp", 16, 1))], "does not hold"),
    ],
    "NADE is better than FVSBN even with fewer parameters": [
        ([scored(16, FVSBN, GOOD)], "not measured"),
        ([scored(16, FVSBN, GOOD, model("nade", 16, 3, mean=9.0))], "holds"),
        ([scored(16, FVSBN, GOOD, BAD)], "does not hold"),
    ],
    "sampling is sequential, and so slow": [  # at the largest n
        ([timed(4, 99, 99), timed(16, 1, 9)], "does not hold"),
        ([timed(4, 99, 99), timed(16, 1, 11)], "depends"),
        ([timed(4, 1, 1), timed(16, 11, 11)], "holds"),
    ],
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_verdict_turns_when_the_figures_do(claim: str) -> None:
    for sets, expected in [*VERDICTS[claim], ([], "not measured"), ([scored(16)], "not measured")]:
        found = study.judge(sets, **CLAIMS[claim])
        assert found["verdict"] == expected
        assert bool(found["figures"]) == (expected != "not measured")


def test_what_no_table_can_hold_is_said() -> None:
    claim = CLAIMS["a truth table needs exponentially many parameters"]
    judged = study.judge([scored(16, model("tabular", 16)), scored(784)], **claim)
    assert judged["figures"] == ["65,535 for n = 16; n = 784 takes 2^784 − 1 ≈ 10^236"]


@pytest.mark.parametrize("changes", [{"rule": "nicer"}, {"than": "fvsbn"}])
def test_a_mistyped_rule_is_said(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="rule must be one of represents, exponential"):
        study.judge([], **({"claim": "a claim", "rule": "grows", "model": "nade"} | changes))


# ---- as text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", study.FORMATS)
def test_every_format_has_every_verdict(form: str) -> None:
    sets = [scored(16, model("fvsbn", 16), model("nade", 16, 3, mean=9.0)), scored(784, model("nade", 784, 500))]
    judgements = [study.judge(sets, **claim) for claim in CLAIMS.values()]
    text = " ".join(study.render(sets, judgements, MODELS, form).replace("\\", "").split())
    for part in ("HOLDS: NADE is still better", "DOES NOT HOLD", "NOT MEASURED: MLP is more", "785,284"):
        assert part in text
    if form == "markdown":
        assert "| fvsbn | | 136 | 0.531 n² |" in text


def test_a_kl_that_says_nothing_is_left_out() -> None:
    made = model("fvsbn", 16, kl_train=1.2345)
    assert "1.2345" in study.render([scored(16, made)], [], MODELS, "markdown")
    distinct = study.render([scored(16, made, distinct=95)], [], MODELS, "markdown")
    assert "1.2345" not in distinct
    assert "left out" in distinct


# ---- the command ------------------------------------------------------------------------------------


def command(*words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["chainrule", *words])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        cli.main()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All four models on toy images, trained a little and in two sizes, and their claims; the working directory."""
    cwd = tmp_path_factory.mktemp("claims")
    short = ["data=toy", "logger=none", "trainer.enable_progress_bar=false", "trainer.max_epochs=2"]
    table = ["model=tabular", "model.closed_form=true", "model.smoothing=0", "trainer.max_epochs=0"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other where the machine is busy
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        for words in (["model=fvsbn,mlp", "data.side=2,3"], ["model=nade", "model.hidden=2,8"], table):
            command("train", "-m", *short, *words)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            command("claims", "runs=runs", "out=out/claims.json")
        Path("printed").write_text(printed.getvalue())
        torch.set_num_threads(threads)
        yield cwd


@pytest.mark.slow
def test_the_command_measures_finished_runs(measured: Path) -> None:
    content = json.loads((measured / "out/claims.json").read_text())
    assert [
        (p["n"], sorted((f["model"], f["d"]) for f in p["models"] if f["model"] != "fvsbn")) for p in content["sets"]
    ] == [(4, [("mlp", 16)]), (9, [("mlp", 16), ("nade", 2), ("nade", 8), ("tabular", None)])]
    records = [json.loads(file.read_text()) for file in measured.glob("runs/**/result.json")]
    by_model = {(r["model"], r["data"]["n"], r["config"]["model"].get("hidden")): r for r in records}
    for where in content["sets"]:
        for found in where["models"]:
            record = by_model[found["model"], found["n"], found["d"]]
            assert found["test"] == record["nll"]["test"]["mean"]
            # Every split of the toy data has the same distribution, whose entropy is known.
            assert found["kl_test"] == pytest.approx(found["test"] - where["test"]["entropy"], abs=1e-5)
            assert found["kl_train"] == pytest.approx(found["kl_test"], abs=1e-9)
            assert found["parameters"] == record["parameters"]["count"]
            assert min(found["seconds"].values()) > 0
        assert where["train"]["entropy"] == pytest.approx(math.log(2 ** (math.isqrt(where["n"]) + 1) - 2))
    verdict_of = {claim["claim"]: claim["verdict"] for claim in content["claims"]}
    assert set(verdict_of) == set(CLAIMS)
    assert verdict_of["a truth table can represent any distribution"] == "holds"
    assert verdict_of["NADE has O(nd) parameters"] == "not measured"


@pytest.mark.slow
def test_the_command_prints_what_it_writes(measured: Path) -> None:
    printed, written = (measured / "printed").read_text(), (measured / "out/claims.md").read_text()
    assert "toy, n = 9" in printed
    assert "| model | d | parameters |" in written
    for text in CLAIMS:
        assert re.search(rf"(HOLDS|DOES NOT HOLD|DEPENDS|NOT MEASURED): {re.escape(text)}", " ".join(printed.split()))
    assert str(measured) not in (measured / "out/claims.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs=runs", "format=csv"], "unknown format 'csv': choose one of console, markdown, latex"),
        (["runs=runs", "out=claims.txt"], "out must end in .json, got claims.txt"),
        (["runs=nowhere"], "nowhere does not exist"),
        (["runs=out"], "no finished run of tabular, fvsbn, mlp, nade in"),
        ([], "say where the runs are"),
    ],
)
def test_mistakes(measured: Path, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        command("claims", *words)


@pytest.mark.slow
def test_other_images_than_those_of_the_runs_are_refused(measured: Path, tmp_path: Path) -> None:
    run = next(file.parent for file in measured.glob("runs/**/result.json"))
    copy = shutil.copytree(run, tmp_path / "run")
    record = json.loads((copy / "result.json").read_text())
    record["data"]["sha256"]["train"] = "0" * 64
    (copy / "result.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=r"give their paths\.data_dir"):
        command("claims", f"runs={copy}")


# ---- the script -------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A checkout that is set up, and whose chainrule only writes down its words."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    command = checkout / ".venv/bin/chainrule"
    command.parent.mkdir(parents=True)
    command.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$*" >>"${0%/*}/words"\n')
    command.chmod(0o755)
    ready = 'echo "$(cat pyproject.toml constraints.txt | cksum) $PWD" >.venv/.ready-run'
    subprocess.run(["bash", "-c", ready], cwd=checkout, check=True)
    return checkout


def words_of(script: Path, *words: str) -> list[list[str]]:
    subprocess.run([script / "scripts/claims", *words], check=True, cwd=script)
    return [line.split() for line in (script / ".venv/bin/words").read_text().splitlines()]


def test_the_script_trains_and_then_measures(script: Path) -> None:
    *trainings, last = words_of(script, "paths.data_dir=d", "runs=r", "data=seeded", "seed=0,1")
    assert last == ["claims", "runs=r", "out=r/claims.json", "paths.data_dir=d"]
    for words in trainings:
        assert words[:2] == ["train", "-m"]
        assert {"data=seeded", "paths.runs=r", "paths.data_dir=d", "seed=0,1"} <= set(words)
        assert "data=static" not in words


def test_the_script_s_recipes_compose_and_cover_every_claim(script: Path) -> None:
    trained = {size for words in words_of(script)[:-1] for size in sizes(words)}
    four = {("tabular", 16), *((name, n) for name in ("fvsbn", "mlp", "nade") for n in (16, 49, 784))}
    assert {(name, n) for name, n, _ in trained} == four
    for n in (16, 49, 784):
        hidden = {d for name, m, d in trained if (name, m) == ("nade", n)}
        d, fvsbn = min(hidden), n * (n + 1) // 2  # the largest with fewer parameters than FVSBN, and larger ones
        assert 2 * n * d + d + n < fvsbn <= 2 * n * (d + 1) + d + 1 + n
        assert d < max(hidden)


def sizes(words: list[str]) -> Iterator[tuple[str, int, int | None]]:
    """Model, n and d of each job of a sweep."""
    swept = {key: value.split(",") for key, _, value in (word.partition("=") for word in words)}
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        for experiment in swept["experiment"]:
            cfg = compose("train", overrides=[f"experiment={experiment}", "data=static"])
            sides, hidden = (
                swept.get("data.side", [cfg.data.side]),
                swept.get("model.hidden", [cfg.model.get("hidden")]),
            )
            for side, d in itertools.product(sides, hidden):
                yield cfg.model._target_.split(".")[-2], int(side) ** 2, None if d is None else int(d)
