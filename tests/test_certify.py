"""Honest models pass every check; each dishonest one is caught, by the checks that say what is wrong with it."""

from __future__ import annotations

import hashlib
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
from zoo import MODELS, ROOT, an_order, base_of, build, told

import chainrule
from chainrule import cli
from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation import coding
from chainrule.evaluation.certify import CHECKS, Context
from chainrule.evaluation.certify.certificate import outcomes
from chainrule.evaluation.scoring import nll_per_image
from chainrule.mixture import Mixture, OrderEnsemble
from chainrule.models.fvsbn import FVSBN
from chainrule.runs.certificate import Certificate, suspicion, verdict
from chainrule.runs.record import Record

SMALL = {"n": 300, "k": 6, "seed": 0, "seconds": 1e6}  # a compiler at work must not cost images


def perturbed(kind: type[AutoregressiveDensity] | str, shape: tuple[int, int] = (4, 4)) -> AutoregressiveDensity:
    """Any model, honest or not, in float32 with the parameters that all of its kind have here."""
    if isinstance(kind, str):
        model = build(kind, shape, order=an_order(kind), **told(kind)).float()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        return model
    model = perturbed(base_of(kind), shape)
    model.__class__ = kind
    return model


def images(model: BinaryDensity, count: int = 400) -> Tensor:
    return model.sample(count, torch.Generator().manual_seed(1)).to(torch.uint8)


def checked(density: BinaryDensity, test: Tensor, **settings: float) -> dict[str, Any]:
    nll = torch.from_numpy(nll_per_image(density, test))
    context = Context(density, test, nll, **SMALL | settings)
    return outcomes({name: partial(check, context) for name, check in CHECKS.items()})["checks"]


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
    model = perturbed("nade", (5, 5))
    checks = checked(model, images(model))
    assert not failed(checks)
    assert "whole" not in checks["normalization"]
    assert checks["normalization"]["deviation"] < 1e-12


def test_fewer_images_than_asked_for() -> None:
    model = perturbed("fvsbn")
    checks = checked(model, images(model, 2))
    assert not failed(checks)
    assert checks["coding"]["images"] == checks["causality"]["images"] == 2


# ---- dishonest ones -----------------------------------------------------------------------------------

EVERY = set(CHECKS)
CAUGHT = {
    broken.PeekingFVSBN: EVERY,
    broken.LateMaskFVSBN: {"causality", "normalization", "implementations", "coding"},
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
    broken.OtherKernel: {"implementations", "coding"},
    broken.NotANumber: EVERY,
    broken.PeekingInLargeBatches: {"normalization", "coding"},
    broken.AttentionOffByOne: EVERY,
    broken.StaleCache: {"implementations", "coding", "honesty"},
    broken.UntoldWalk: {"implementations", "coding"},
    broken.TableReadBackwards: EVERY,
    broken.MaskOffByOne: EVERY,
    broken.StaleUnits: {"implementations", "coding", "honesty"},
    broken.LogitsAveragedOverOrders: EVERY,
    broken.OrderNotUsed: EVERY,
    broken.PixelsOffAreUnseen: {"implementations", "coding", "honesty"},
}


def test_no_mistake_goes_without_a_test() -> None:
    classes = {c for c in vars(broken).values() if isinstance(c, type) and c.__module__ == "broken"}
    assert {c for c in classes if issubclass(c, BinaryDensity)} == set(CAUGHT)


@pytest.mark.parametrize("kind", CAUGHT, ids=lambda kind: kind.__name__)
def test_a_mistake_is_caught_by_the_checks_that_see_it(kind: type[AutoregressiveDensity]) -> None:
    test = images(perturbed(base_of(kind)))
    assert failed(checked(perturbed(kind), test)) == CAUGHT[kind]


def test_the_counterexample_is_the_first_and_it_is_one() -> None:
    model = perturbed(broken.LateMaskFVSBN)
    test = images(perturbed("fvsbn"))
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
    found = checked(perturbed(broken.Forgetful), images(perturbed("fvsbn")))["coding"]
    assert re.fullmatch(r"test image \d+, pixel \d+: decoded as [01], was [01]", found["counterexample"])
    assert {found["expected"], found["found"]} == {0, 1}


def test_a_double_sigmoid_far_from_any_image_is_still_caught() -> None:
    model, test = perturbed(broken.DoubleSigmoidInDraw, (5, 5)), images(perturbed("fvsbn", (5, 5)))
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
    assert skipped == {"causality", "implementations"} | (set() if countable else {"normalization"})
    assert checks["coding"]["networks"] == 3
    assert all("a mixture has no" in checks[name]["not_applicable"] for name in skipped)
    assert set(checks["honesty"]["z"]) == {"member 0", "member 1", "member 2"}


def test_a_mixture_that_draws_from_one_member_only_is_caught() -> None:
    mixture = FirstOnly(members()).eval()
    assert failed(checked(mixture, images(mixture))) == {"honesty"}


def test_a_mixture_that_does_not_divide_is_caught() -> None:
    mixture = Sum(members()).eval()
    checks = checked(mixture, images(mixture))
    assert failed(checks) == {"normalization", "coding"}
    assert checks["normalization"]["found"] == pytest.approx(3)


@pytest.mark.parametrize("shape", [(3, 3), (5, 5)])
def test_one_network_in_several_orders_is_checked_in_each(shape: tuple[int, int]) -> None:
    ensemble = OrderEnsemble(perturbed("nade", shape), 4).eval()
    checks = checked(ensemble, images(ensemble))
    n = shape[0] * shape[1]
    assert {check["passed"] for check in checks.values()} == {True}, checks
    assert checks["causality"]["flips"] == 3 * 4 * n
    assert checks["implementations"]["orders"] == checks["coding"]["networks"] == 4
    assert set(checks["honesty"]["z"]) == {f"member {k}" for k in range(4)}


class AveragedOrders(OrderEnsemble):
    """Averages the log-probabilities of its orders."""

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.stack([member.log_prob(x) for member in self.members]).mean(0)


def test_log_probabilities_averaged_over_orders_are_caught() -> None:
    ensemble = AveragedOrders(perturbed("fvsbn", (3, 3)), 3).eval()
    assert failed(checked(ensemble, images(ensemble))) == {"normalization", "coding"}


def test_a_mistake_in_one_order_of_an_ensemble_is_caught() -> None:
    ensemble = OrderEnsemble(perturbed(broken.PeekingFVSBN), ["raster", "spiral"]).eval()
    assert {"causality", "implementations", "normalization", "coding"} <= failed(checked(ensemble, images(ensemble)))


# ---- models without a fast walk, and costly ones -------------------------------------------------------


class Slow(FVSBN):
    """Has no walk of its own: the default recomputes all conditionals at every step."""

    walk = AutoregressiveDensity.walk


class SlowPeeking(Slow):
    """The same, and sees its own pixel."""

    def conditionals(self, z: Tensor) -> Tensor:
        return super().conditionals(z) + 0.5 * z


@pytest.mark.parametrize(("side", "by"), [(4, "walk"), (10, "fixed point")])
def test_without_a_walk_of_its_own(side: int, by: str) -> None:
    model = perturbed(Slow, (side, side))
    checks = checked(model, images(model, 40))
    assert not failed(checks), checks
    assert (checks["coding"]["by"], checks["coding"]["images"]) == (by, 40)
    assert checks["implementations"]["by"] == "walk"
    assert checks["coding"]["nats_per_image"] * 40 / np.log(2) == pytest.approx(checks["coding"]["nll_bits"], rel=1e-4)


def test_the_fixed_point_needs_nothing_but_the_model_and_the_bits() -> None:
    model = perturbed(Slow, (10, 10))
    x = images(model, 30)
    streams = coding.encode_each(model, x)
    assert torch.equal(coding.decode_each(model, [one.words for one in streams]), x)
    torch.testing.assert_close(torch.stack([one.nats for one in streams])[:, 0], -model.double().log_prob(x).detach())


def test_what_peeks_is_caught_without_a_walk() -> None:
    x = images(perturbed("fvsbn", (10, 10)), 40)
    checks = checked(perturbed(SlowPeeking, (10, 10)), x)
    assert {"causality", "normalization", "coding"} <= failed(checks)
    assert re.fullmatch(r"test image \d+, pixel \d+: decoded as [01], was [01]", checks["coding"]["counterexample"])


def test_a_costly_model_is_checked_on_fewer_images() -> None:
    model = perturbed(Slow, (10, 10))
    checks = checked(model, images(model), seconds=1e-9)
    assert not failed(checks)
    assert checks["coding"]["images"] == 8
    assert checks["normalization"]["completions"] == 32
    assert checks["honesty"]["samples"]["count"] < 1000
    assert checks["causality"]["images"] == 1


class BlindSpot(FVSBN):
    """Never looks at the first pixel."""

    def conditionals(self, z: Tensor) -> Tensor:
        return super().conditionals(torch.cat([0 * z[:, :1], z[:, 1:]], 1))

    walk, draw = AutoregressiveDensity.walk, AutoregressiveDensity.draw


class AllowedBlindSpot(BlindSpot):
    """The same, and says so."""

    sees_all = False


def test_a_blind_spot_is_caught_where_the_class_says_that_it_has_none() -> None:
    x = images(perturbed("fvsbn"))
    checks = checked(perturbed(BlindSpot), x)
    assert failed(checks) == {"causality"}
    assert "step 0 does not change the logit of step 1: a blind spot" in checks["causality"]["counterexample"]
    allowed = checked(perturbed(AllowedBlindSpot), x)
    assert not failed(allowed)
    assert allowed["causality"]["reacting"] == pytest.approx(1 - 15 / 120)


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
    assert written["schema"] == 2
    assert written["passed"] is True
    assert written["sha256"]["checkpoint"] == record["checkpoint_sha256"]
    for name, file in (("nll_test", "nll_test.npz"), ("config", "config.yaml")):
        assert written["sha256"][name] == hashlib.sha256((folder / "a" / file).read_bytes()).hexdigest()
    canonical = json.dumps(record, sort_keys=True).encode()
    assert written["sha256"]["record"] == hashlib.sha256(canonical).hexdigest()
    assert written["test_nll"] == record["nll"]["test"]["mean"]
    assert {"date", "hardware", "git"} <= set(written)
    assert {"torch", "constriction"} <= set(written["versions"])
    assert written["checks"]["coding"]["images"] == 20
    again = written["checks"]["recomputation"]
    assert again["nll"] == pytest.approx(record["nll"]["test"]["mean"], abs=1e-6)
    assert (again["count"], again["distinct"], again["also_in_training"]) == (56, 14, 56)
    assert (again["train_images"], again["valid_images"]) == (record["nll"]["train"]["count"], 56)
    assert objection(folder / "a") == ""


def objection(folder: Path) -> str | None:
    """What speaks against the certificate in a folder; empty: nothing; None: there is none."""
    found = verdict(folder, Record.read(folder))
    return None if found is None else found.objection


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


def spoil_certificate(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = certificate(run)
    change(content)
    (run / "certificate.json").write_text(json.dumps(content))


def edit(*keys: str, value: object) -> Callable[[Path], None]:
    """Sets one field of a record."""

    def change(record: dict[str, Any]) -> None:
        for key in keys[:-1]:
            record = record[key]
        assert record[keys[-1]] != value
        record[keys[-1]] = value

    return lambda run: spoil_record(run, change)


# What of a record can be edited, and what certify says that runs after it.
SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a better number": (edit("nll", "test", "mean", value=1.5), r".*their mean is \d\.\d+, not the record's 1\.500000"),
    "images left out": (edit("nll", "test", "count", value=50), "there are 56 test images, but the record counts 50"),
    "standard error": (
        edit("nll", "test", "stderr", value=0.01),
        r".*their standard error is .*the record's 0\.010000",
    ),
    "bits per pixel": (edit("bits_per_pixel", value=0.1), r".*their bits per pixel is \S+, not the record's 0\.100000"),
    "validation": (
        edit("nll", "valid", "mean", value=1.0),
        r"the mean valid NLL is .*, but 1\.000000 .* in the record",
    ),
    "its error": (
        edit("nll", "valid", "stderr", value=9.0),
        r"the standard error of the valid NLL is .*, but 9\.0+ .*",
    ),
    "training": (edit("nll", "train", "mean", value=1.0), r"the mean train NLL is .*, but 1\.000000 .* in the record"),
    "model": (edit("model", value="fvsbn"), "model is nade by checkpoint and config.yaml, but fvsbn in the record"),
    "order": (edit("order", value="spiral"), r"order is raster by .*, but spiral in the record"),
    "seed": (edit("seed", value=7), r"seed is 0 by .*, but 7 in the record"),
    "parameters": (edit("parameters", "count", value=3), r"parameters is \(\d+, \d+\) by .*, but \(3, \d+\) .*"),
    "a setting": (edit("config", "model", "hidden", value=9), r"model.hidden is 8 by .*, but 9 in the record"),
    "data": (edit("data", "name", value="static"), r"the images are toy, but static in the record"),
    "other test images": (
        edit("data", "sha256", "test", value="ab" * 32),
        r"the test images have SHA-256 \w{64}, but (ab){32} in the record",
    ),
    "images in another order": (
        lambda run: spoil_nll(run, lambda nll: np.roll(nll, 1)),
        r"test image \d+ has an NLL of \S+ nats, but \S+ in nll_test.npz",
    ),
    "one image twice": (
        lambda run: spoil_nll(run, lambda nll: np.concatenate([nll, nll[-1:]])),
        r"there are 56 test images, but nll_test\.npz has 57",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_record_that_is_not_the_model_s_fails(
    case: str, run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = SPOILED[case]
    spoil(folder / "a")
    with pytest.raises(SystemExit) as stop:
        run("certify", "run=a", "n=20")
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "NOT certified" in said
    assert re.search(r"recomputation +FAILED", said)
    written = certificate(folder / "a")
    assert written["passed"] is False
    assert "recomputation" in failed(written["checks"])
    assert re.fullmatch(message, written["checks"]["recomputation"]["counterexample"])
    assert objection(folder / "a")


# ---- what a certificate is about ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certified(finished: Path) -> Path:
    """The finished runs once more, certified, and a certified mixture of them: ``mixed``."""
    folder = finished.parent / "certified"
    shutil.copytree(finished, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command(patch, "mix", "runs=a,b", "out=mixed")
        for name in ("a", "b", "mixed"):
            command(patch, "certify", f"run={name}", "n=20")
    return folder


def rewrite_checkpoint(run: Path) -> None:
    (run / "checkpoints/best.ckpt").write_bytes(b"other weights")


EDITED: dict[str, tuple[Callable[[Path], object], str]] = {
    **{name: (SPOILED[name][0], "the record has changed since it was certified") for name in SPOILED
       if name not in ("a better number", "other test images", "images in another order", "one image twice")},
    "a better number": (SPOILED["a better number"][0], "the certificate is of another number"),
    "other test images": (SPOILED["other test images"][0], "the certificate is of other test images"),
    "images in another order": (
        SPOILED["images in another order"][0], "nll_test.npz has changed since it was certified",
    ),
    "a copy with another seed": (edit("seed", value=1), "the record has changed since it was certified"),
    "seconds": (edit("seconds", value=0.1), "the record has changed since it was certified"),
    "machine": (edit("hardware", "cores", value=99), "the record has changed since it was certified"),
    "data altogether": (
        lambda run: (edit("data", "name", value="static")(run), edit("data", "sha256", "train", value="0")(run)),
        "the record has changed since it was certified",
    ),
    "another checkpoint": (rewrite_checkpoint, "checkpoints/best.ckpt has changed since it was certified"),
    "another configuration": (
        lambda run: (run / "config.yaml").write_text("seed: 3\n"), "config.yaml has changed since it was certified",
    ),
    "no hash in the record": (
        lambda run: spoil_record(run, lambda record: record.pop("checkpoint_sha256")),
        "the record has changed since it was certified",
    ),
    "no checks": (
        lambda run: spoil_certificate(run, lambda content: content.update(checks={})),
        "the certificate has no checks in it",
    ),
    "a failed check": (
        lambda run: spoil_certificate(run, lambda content: content["checks"]["coding"].update(passed=False)),
        "failed coding",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EDITED)
def test_what_is_edited_is_not_certified_any_more(case: str, certified: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(certified / "a", tmp_path / "a"))
    assert objection(run) == ""
    spoil, message = EDITED[case]
    spoil(run)
    assert objection(run) == message


def test_a_certificate_holds_without_the_files_that_are_not_there(certified: Path, tmp_path: Path) -> None:
    for name in ("certificate.json", "result.json"):
        shutil.copy(certified / "a" / name, tmp_path / name)
    record = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(record, indent=4))  # the same record in another layout
    assert objection(tmp_path) == ""


def test_a_mixture_whose_member_changed_is_not_certified_any_more(
    certified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(certified, tmp_path / "moved"))
    assert objection(folder / "mixed") == ""
    rewrite_checkpoint(folder / "b")
    assert objection(folder / "mixed") == "../b/checkpoints/best.ckpt has changed since it was certified"
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match="a member of it, has changed since"):
        command(monkeypatch, "certify", "run=mixed")


def test_a_checkpoint_that_is_not_the_record_s_is_refused(run: Run, folder: Path) -> None:
    rewrite_checkpoint(folder / "a")
    with pytest.raises(SystemExit, match=r"a: the checkpoint is not the record's .* Put back the checkpoint"):
        run("certify", "run=a")
    assert not (folder / "a/certificate.json").exists()


def test_every_certificate_in_results_holds() -> None:
    found = {file.parent: objection(file.parent) for file in (ROOT / "results").glob("*/certificate.json")}
    assert len(found) >= 43
    assert not {path.name: text for path, text in found.items() if text}


def test_of_an_early_certificate_what_is_arithmetic_is_done_again(tmp_path: Path) -> None:
    run = Path(shutil.copytree(ROOT / "results/fvsbn-dynamic-s0", tmp_path / "run"))
    for keys, value in ((("nll", "test", "stderr"), 0.001), (("bits_per_pixel",), 0.1), (("data", "side"), 5)):
        before = (run / "result.json").read_text()
        edit(*keys, value=value)(run)
        assert re.match(r"nll_test.npz is not of this run: (their|images of 25 pixels)", objection(run) or "")
        (run / "result.json").write_text(before)
    spoil_record(run, lambda record: record.pop("checkpoint_sha256"))
    assert objection(run) == "the record names no checkpoint: certify again"


@pytest.mark.parametrize(("valid", "test", "said"), [(16.53, 8.13, True), (88.2, 87.1, False), (11.0, 10.5, False)])
def test_a_test_set_that_was_learnt_by_heart_is_said(valid: float, test: float, said: bool) -> None:
    record = json.loads((ROOT / "results/nade-n16-s0/result.json").read_text())
    record["nll"]["valid"] |= {"mean": valid, "stderr": 0.1}
    record["nll"]["test"] |= {"mean": test, "stderr": 0.1}
    found = suspicion(Record.model_validate(record))
    assert bool(found) == said
    assert not said or f"the test NLL, {test:.2f}, is far below the validation NLL, {valid:.2f} nats" in found


def test_the_table_says_it_too(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit("nll", "valid", "mean", value=30.0)(folder / "a")
    with pytest.raises(SystemExit):
        run("certify", "run=a", "n=20")
    assert "far below the validation NLL, 30.00 nats: were the test images trained on?" in capsys.readouterr().out
    found = verdict(folder / "a", Record.read(folder / "a"))
    assert found is not None
    assert found.warning


def test_where_nothing_can_be_written_the_verdict_is_said(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Certificate, folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Certificate, "write", refuse)
    with pytest.raises(SystemExit, match="Permission denied"):
        run("certify", "run=a", "n=20")
    assert "certified: test NLL" in capsys.readouterr().out


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
    "torn checkpoint": (["run=torn"], "the checkpoint is not the record's"),
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
    with pytest.raises(SystemExit, match="no CUDA device available: use device=cpu"):
        run("certify", "run=a", "device=cuda")


def test_numbers_that_json_does_not_know_are_words() -> None:
    checks = checked(perturbed(broken.NotANumber), images(perturbed("fvsbn")))
    assert json.loads(json.dumps(checks, allow_nan=False))["normalization"]["found"] == "nan"
