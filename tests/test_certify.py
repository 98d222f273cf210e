"""Honest models pass every check; each dishonest one is caught, by the checks that say what is wrong with it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import broken
import numpy as np
import pytest
import torch
from torch import Tensor
from zoo import MODELS, an_order, build

import chainrule
from chainrule import cli
from chainrule.density import BinaryDensity
from chainrule.evaluation.certify import CHECKS, Subject
from chainrule.evaluation.certify.certificate import outcomes
from chainrule.mixture import Mixture
from chainrule.models.fvsbn import FVSBN
from chainrule.models.nade import NADE
from chainrule.reporting import tables

SMALL = {"n": 300, "k": 6, "seed": 0}


def perturbed(kind: type[FVSBN | NADE], shape: tuple[int, int] = (4, 4)) -> FVSBN | NADE:
    """Any FVSBN or NADE, honest or not, with the parameters that all of its kind have here."""
    size = {"hidden": 6} if issubclass(kind, NADE) else {}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = kind(shape=shape, order="random-3", **size).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
    return model


def images(model: BinaryDensity, count: int = 400) -> Tensor:
    return model.sample(count, torch.Generator().manual_seed(1)).to(torch.uint8)


def checked(density: BinaryDensity, test: Tensor, **settings: int) -> dict[str, Any]:
    subject = Subject(density, test, **SMALL | settings)
    return outcomes({name: partial(check, subject) for name, check in CHECKS.items()})["checks"]


def failed(checks: dict[str, Any]) -> set[str]:
    return {name for name, check in checks.items() if check["passed"] is False}


# ---- honest ones --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_an_honest_model_passes(name: str, precision: torch.dtype) -> None:
    model = build(name, shape=(4, 4), order=an_order(name)).to(precision)
    checks = checked(model, images(model))
    assert all(check["passed"] for check in checks.values()), checks
    assert checks["causality"]["flips"] == 3 * 16
    assert checks["causality"]["reacting"] == 1 or not model.sees_all
    assert checks["normalization"]["completions"] == 64
    assert checks["coding"]["bits"] == pytest.approx(checks["coding"]["nll_bits"], abs=64)


def test_images_without_end_are_completed_and_not_counted() -> None:
    model = perturbed(NADE, (5, 5))
    checks = checked(model, images(model))
    assert not failed(checks)
    assert "whole" not in checks["normalization"]
    assert checks["normalization"]["deviation"] < 1e-12


def test_fewer_images_than_asked_for() -> None:
    model = perturbed(FVSBN)
    checks = checked(model, images(model, 2))
    assert not failed(checks)
    assert checks["coding"]["images"] == checks["causality"]["images"] == 2


# ---- dishonest ones -----------------------------------------------------------------------------------

EVERY = set(CHECKS)
CAUGHT = {
    broken.PeekingFVSBN: EVERY,
    broken.LateMaskFVSBN: {"causality", "normalization", "implementations"},
    broken.AveragedLogits: EVERY,
    broken.BatchNormalized: EVERY,
    broken.DoubleSigmoidInWalk: {"implementations", "coding", "honesty"},
    broken.DoubleSigmoidInDraw: {"implementations", "honesty"},
    broken.DoubleSigmoidInLogProb: {"normalization", "implementations", "coding"},
    broken.UnnormalizedLogProb: {"normalization", "implementations", "coding"},
    broken.SamplerInAnotherOrder: {"implementations", "honesty"},
    broken.SampleInAnotherOrder: {"honesty"},
    broken.WalkInAnotherOrder: {"implementations", "coding"},
    broken.Forgetful: {"implementations", "coding"},
    broken.OtherKernel: {"implementations"},
    broken.NotANumber: EVERY,
}


def test_no_mistake_goes_without_a_test() -> None:
    classes = {c for c in vars(broken).values() if isinstance(c, type) and c.__module__ == "broken"}
    assert classes == set(CAUGHT)


@pytest.mark.parametrize("kind", CAUGHT, ids=lambda kind: kind.__name__)
def test_a_mistake_is_caught_by_the_checks_that_see_it(kind: type[FVSBN | NADE]) -> None:
    test = images(perturbed(NADE if issubclass(kind, NADE) else FVSBN))
    assert failed(checked(perturbed(kind), test)) == CAUGHT[kind]


def test_the_counterexample_is_the_first_and_it_is_one() -> None:
    model = perturbed(broken.LateMaskFVSBN)
    test = images(perturbed(FVSBN))
    found = checked(model, test)["causality"]
    assert (found["flipped"], found["step"], found["pixel"]) == (15, 14, int(model.order[14]))
    image = test[found["image"]].clone()
    before = model(image[None])[0, found["pixel"]]
    image[model.order[15]] ^= 1
    after = model(image[None])[0, found["pixel"]]
    assert (before.item(), after.item()) == pytest.approx((found["expected"], found["found"]), abs=1e-6)
    assert (before - after).item() == pytest.approx(0.5 if image[model.order[15]] == 0 else -0.5, abs=1e-5)
    assert re.fullmatch(
        r"test image \d+: flipping the pixel of step 15 changes the logit of step 14 from \S+ to \S+",
        found["counterexample"],
    )


def test_an_image_that_comes_back_otherwise_is_named() -> None:
    found = checked(perturbed(broken.Forgetful), images(perturbed(FVSBN)))["coding"]
    assert re.fullmatch(r"test image \d+, pixel \d+: decoded as [01], was [01]", found["counterexample"])
    assert {found["expected"], found["found"]} == {0, 1}


def test_a_double_sigmoid_far_from_any_image_is_still_caught() -> None:
    model, test = perturbed(broken.DoubleSigmoidInDraw, (5, 5)), images(perturbed(FVSBN, (5, 5)))
    assert failed(checked(model, test)) == {"implementations", "honesty"}


# ---- mixtures -----------------------------------------------------------------------------------------


class FirstOnly(Mixture):
    """Draws from its first member only."""

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.members[0].sample(n, generator)


class Sum(Mixture):
    """Forgets to divide by the number of members."""

    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x) + np.log(len(self.members))


def members(shape: tuple[int, int] = (3, 3)) -> list[BinaryDensity]:
    return [build("fvsbn", shape, seed=seed, order=f"random-{seed}").float() for seed in range(3)]


@pytest.mark.parametrize(("shape", "countable"), [((3, 3), True), ((5, 5), False)])
def test_of_a_mixture_what_applies_is_checked(shape: tuple[int, int], countable: bool) -> None:
    mixture = Mixture(members(shape)).eval()
    checks = checked(mixture, images(mixture))
    assert not failed(checks)
    skipped = {name for name, check in checks.items() if check["passed"] is None}
    assert skipped == {"causality", "implementations", "coding"} | (set() if countable else {"normalization"})
    assert all("a mixture has no" in checks[name]["not_applicable"] for name in skipped)
    assert set(checks["honesty"]["z"]) == {"member 0", "member 1", "member 2"}


def test_a_mixture_that_draws_from_one_member_only_is_caught() -> None:
    mixture = FirstOnly(members()).eval()
    assert failed(checked(mixture, images(mixture))) == {"honesty"}


def test_a_mixture_that_does_not_divide_is_caught() -> None:
    mixture = Sum(members()).eval()
    checks = checked(mixture, images(mixture))
    assert failed(checks) == {"normalization"}
    assert checks["normalization"]["found"] == pytest.approx(3)


# ---- the command --------------------------------------------------------------------------------------

Run = Callable[..., str]


def command(patch: pytest.MonkeyPatch, *words: str) -> None:
    patch.setattr(sys, "argv", ["chainrule", *words])
    patch.setenv("COLUMNS", "200")
    patch.delenv("HYDRA_FULL_ERROR", raising=False)
    cli.main()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, a and b."""
    folder = tmp_path_factory.mktemp("certify")
    words = ["train", "data=toy", "logger=none", "trainer.max_epochs=3", "optimizer.lr=0.03"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command(patch, *words, "model=nade", "model.hidden=8", "hydra.run.dir=a")
        command(patch, *words, "model=fvsbn", "model.order=random-1", "hydra.run.dir=b")
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be spoiled."""
    shutil.copytree(finished, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> str:
        command(monkeypatch, *words)
        return capsys.readouterr().out

    return call


def certificate(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "certificate.json").read_text())
    return content


def test_a_finished_run_is_certified(run: Run, folder: Path) -> None:
    said = run("certify", "run=a", "n=20")
    assert "certified: test NLL" in said
    assert len(re.findall(r"^ +\w+ +passed ", said, re.MULTILINE)) == 6
    written, record = certificate(folder / "a"), json.loads((folder / "a/result.json").read_text())
    assert written["schema"] == 1
    assert written["passed"] is True
    assert written["checkpoint_sha256"] == record["checkpoint_sha256"]
    assert written["test_nll"] == record["nll"]["test"]["mean"]
    assert {"date", "hardware", "git"} <= set(written)
    assert {"torch", "constriction"} <= set(written["versions"])
    assert written["checks"]["coding"]["images"] == 20
    again = written["checks"]["recomputation"]
    assert again["nll"] == pytest.approx(record["nll"]["test"]["mean"], abs=1e-6)
    assert (again["count"], again["distinct"], again["also_in_training"]) == (56, 14, 56)
    verdict = tables.read_record(folder / "a").verdict
    assert verdict is not None
    assert verdict.certified


def test_recomputed_is_what_the_model_says(run: Run, folder: Path) -> None:
    run("certify", "run=b")
    from chainrule.data import Toy

    data = Toy()
    data.setup()
    exact = -chainrule.load_model(folder / "b").double().log_prob(data.test).mean().item()
    assert certificate(folder / "b")["checks"]["recomputation"]["nll"] == pytest.approx(exact, abs=1e-12)


def spoil_record(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((run / "result.json").read_text())
    change(record)
    (run / "result.json").write_text(json.dumps(record))


def spoil_nll(run: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    nll = np.load(run / "nll_test.npz")["nll"]
    np.savez(run / "nll_test.npz", nll=change(nll))


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a better number": (
        lambda run: spoil_record(run, lambda record: record["nll"]["test"].update(mean=1.5)),
        r"the mean test NLL is \d\.\d+ nats in float64, but 1\.500000 in the record",
    ),
    "images left out": (
        lambda run: spoil_record(run, lambda record: record["nll"]["test"].update(count=50)),
        "there are 56 test images, but the record counts 50",
    ),
    "other test images": (
        lambda run: spoil_record(run, lambda record: record["data"]["sha256"].update(test="ab" * 32)),
        r"the test images have SHA-256 \w{64}, but (ab){32} in the record",
    ),
    "images in another order": (
        lambda run: spoil_nll(run, lambda nll: np.roll(nll, 1)),
        r"test image \d+ has an NLL of \S+ nats, but \S+ in nll_test.npz",
    ),
    "one image twice": (
        lambda run: spoil_nll(run, lambda nll: np.concatenate([nll, nll[-1:]])),
        r"nll_test\.npz has the NLL of 57 images, but there are 56",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_record_that_is_not_the_model_s_fails(
    case: str, run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = SPOILED[case]
    spoil(folder / "a")
    with pytest.raises(SystemExit) as stop:
        run("certify", "run=a")
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "NOT certified" in said
    written = certificate(folder / "a")
    assert written["passed"] is False
    assert failed(written["checks"]) == {"recomputation"}
    assert re.fullmatch(message, written["checks"]["recomputation"]["counterexample"])
    assert re.search(r"recomputation +FAILED", said)
    if case not in ("a better number", "other test images"):
        verdict = tables.read_record(folder / "a").verdict
        assert verdict is not None
        assert not verdict.certified


def test_a_mixture_is_certified_after_its_members(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("mix", "runs=a,b", "out=mixed")
    with pytest.raises(SystemExit):
        run("certify", "run=mixed")
    assert failed(certificate(folder / "mixed")["checks"]) == {"members"}
    assert "certify it first" in capsys.readouterr().out
    run("certify", "run=a")
    run("certify", "run=b")
    assert "all 2 are certified" in run("certify", "run=mixed")
    assert certificate(folder / "mixed")["passed"] is True


MISTAKES = {
    "no run": (["run=nowhere"], "nowhere is not a run directory"),
    "unfinished": (["run=unfinished"], "no result.json: only a finished run has a number to certify"),
    "k too small": (["run=a", "k=3"], "k must be a whole number from 12 to 20, got 3"),
    "no images": (["run=a", "n=0"], "n must be a whole number from 1"),
    "no such device": (["run=a", "device=tpu"], "device must be cpu or cuda, got 'tpu'"),
    "torn checkpoint": (["run=torn"], "best.ckpt is damaged"),
    "torn scores": (["run=scores"], "nll_test.npz is damaged"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_message_and_no_certificate(case: str, run: Run, folder: Path) -> None:
    for name in ("unfinished", "torn", "scores"):
        shutil.copytree(folder / "a", folder / name)
    (folder / "unfinished/result.json").unlink()
    (folder / "torn/checkpoints/best.ckpt").write_bytes(b"PK")
    (folder / "scores/nll_test.npz").write_bytes(b"PK")
    words, message = MISTAKES[case]
    with pytest.raises(SystemExit, match=message):
        run("certify", *words)
    assert not list(folder.rglob("certificate.json"))


def test_no_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA GPU is at hand: use device=cpu"):
        run("certify", "run=a", "device=cuda")


def test_numbers_that_json_does_not_know_are_words() -> None:
    checks = checked(perturbed(broken.NotANumber), images(perturbed(FVSBN)))
    assert json.loads(json.dumps(checks, allow_nan=False))["normalization"]["found"] == "nan"
