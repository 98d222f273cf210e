"""A mixture is a density: exactly normalized, drawn from exactly, and a run directory of its own."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path

import anyorder
import commands
import numpy as np
import pytest
import torch
from zoo import build, chance, every_image

from chainrule import load_model
from chainrule.data import Toy
from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.mixture import Mixture, OrderEnsemble, StepMixture, in_steps
from chainrule.runs.certificate import verdict
from chainrule.runs.record import Record


def members() -> list[BinaryDensity]:
    """Different models in different orders, and one model twice."""
    return [
        build("nade", order="raster"),
        build("fvsbn", order="transposed_lr"),
        build("mlp", order="random-3", seed=1),
        build("fvsbn", order="spiral", seed=2),
    ]


def mixture() -> Mixture:
    return Mixture(members()).eval()


def test_probabilities_sum_to_one() -> None:
    assert mixture().log_prob(every_image()).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_it_is_the_mean_of_the_members_probabilities_of_whole_images() -> None:
    expected = sum(member.log_prob(every_image()).exp() for member in members()) / 4
    torch.testing.assert_close(mixture().log_prob(every_image()).exp(), expected, rtol=1e-12, atol=0)


def test_improbable_images_keep_their_digits() -> None:
    far = [build("fvsbn", shape=(40, 40), seed=seed) for seed in (0, 1)]
    x = torch.ones(1, 1600, dtype=torch.float64)
    nats = [member.log_prob(x).item() for member in far]
    assert max(nats) < math.log(sys.float_info.min)  # a probability that no float holds
    expected = max(nats) + math.log1p(math.exp(min(nats) - max(nats))) - math.log(2)
    assert Mixture(far).eval().log_prob(x).item() == pytest.approx(expected, rel=1e-12)


def test_a_mixture_is_at_least_as_good_as_its_members_on_average_and_never_log_k_worse() -> None:
    ours = mixture().log_prob(every_image())
    each = torch.stack([member.log_prob(every_image()) for member in members()])
    assert (ours > each.mean(0)).all()  # Jensen
    assert (ours >= each.max(0).values - math.log(4)).all()


def test_samples_have_the_exact_probabilities() -> None:
    model, draws = (
        Mixture([build(n, shape=(2, 2), order=o) for n, o in (("nade", "raster"), ("mlp", "spiral"))]),
        20_000,
    )
    samples = model.eval().sample(draws, torch.Generator().manual_seed(0))
    numbers = (samples @ torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)).long()
    expected = model.log_prob(every_image(4)).exp().detach().numpy() * draws
    assert expected.min() > 5
    assert chance(torch.bincount(numbers, minlength=16), expected) > 1e-3


def test_every_image_has_a_member_of_its_own() -> None:
    """Neighbouring draws are independent: no member is served first."""
    model = Mixture([build("fvsbn", shape=(1, 2)), build("fvsbn", shape=(1, 2))]).eval()
    with torch.no_grad():
        model.members[0].alpha0.fill_(40.0)
        model.members[1].alpha0.fill_(-40.0)
    bits = model.sample(4000, torch.Generator().manual_seed(1))[:, 0]
    pairs = torch.bincount((2 * bits[::2] + bits[1::2]).long(), minlength=4)
    assert chance(pairs, pairs.double().mean().expand(4)) > 1e-3


def test_the_same_seed_draws_the_same_samples() -> None:
    first, again, other = (mixture().sample(20, torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_parameters_are_those_of_the_members() -> None:
    assert mixture().parameter_count == sum(member.parameter_count for member in members())
    assert mixture().effective_parameter_count == mixture().parameter_count - 5  # NADE's last column of W


@pytest.mark.parametrize("chosen", [[], [(3, 3)], [(3, 3), (2, 2)]])
def test_members_must_be_two_of_one_shape(chosen: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=rf"two or more members of one image shape, got {len(chosen)}"):
        Mixture([build("fvsbn", shape=shape) for shape in chosen])


def test_images_of_the_wrong_size_or_not_binary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 9\) .*, got the shape \(2, 10\)"):
        mixture().log_prob(torch.zeros(2, 10))
    with pytest.raises(ValueError, match="must be binary"):
        mixture().log_prob(torch.full((2, 9), 0.5))


# ---- chainrule mix ----------------------------------------------------------------------------------


ORDERS = {"a": "raster", "b": "transposed_lr", "c": "random-1"}


def train(where: Path, name: str, *words: str) -> None:
    quick = ["data=toy", "model=fvsbn", "logger=none", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"]
    code, said = commands.finish(["train", *quick, *words, f"hydra.run.dir={name}"], where)
    assert code == 0, said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``members/a``, ``b``, ``c`` in three orders, and their mixture ``mixed``."""
    where = tmp_path_factory.mktemp("mixture")
    for name, order in ORDERS.items():
        train(where, f"members/{name}", f"model.order={order}", "seed=5")
    code, said = commands.finish(["mix", "runs=members", "out=mixed"], where)
    assert code == 0, said
    assert "test NLL" in said
    return where


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same, somewhere else and to be spoiled."""
    return Path(shutil.copytree(finished, tmp_path / "moved"))


def complaint(where: Path, *words: str) -> str:
    """What a command that must fail says, without Hydra's line."""
    code, said = commands.finish(words, where)
    assert code == 1, said
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_a_run_directory_of_a_mixture(finished: Path) -> None:
    record = json.loads((finished / "mixed/result.json").read_text())
    members = [json.loads((finished / "members" / name / "result.json").read_text()) for name in ORDERS]
    toy = Toy(data_dir=".", cache_dir=".")
    toy.setup("test")
    each = torch.stack([load_model(finished / "members" / name).log_prob(toy.test) for name in ORDERS]).double()
    nll = -(each.exp().mean(0).log()).detach().numpy()
    assert record["nll"]["test"]["mean"] == pytest.approx(nll.mean(), abs=1e-5)
    assert np.load(finished / "mixed/nll_test.npz")["nll"] == pytest.approx(nll, abs=1e-5)
    assert record["seconds"] == pytest.approx(sum(member["seconds"] for member in members))
    assert record["parameters"]["count"] == 3 * 45
    assert (record["model"], record["order"], record["seed"], record["epochs"]) == ("mixture", "3 orders", 5, 3)
    assert [member["order"] for member in record["members"]] == list(ORDERS.values())
    assert (finished / "mixed/samples.png").stat().st_size > 100
    assert Record.read(finished / "mixed").name == "mixture of 3 fvsbn"


def test_it_can_be_moved_with_its_members_and_then_evaluated_sampled_and_tabulated(copied: Path) -> None:
    mean = json.loads((copied / "mixed/result.json").read_text())["nll"]["test"]["mean"]
    assert f"toy test: {mean:.3f} ±" in commands.finish(["evaluate", "run=mixed"], copied)[1]
    commands.finish(["sample", "run=mixed", "n=7", "seed=2", "out=bits.npy"], copied)
    expected = load_model(copied / "mixed").sample(7, torch.Generator().manual_seed(2))
    assert np.array_equal(np.load(copied / "bits.npy").reshape(7, 9), expected.numpy())
    assert "mixture of 3 fvsbn" in commands.finish(["tabulate", "runs=mixed", "published=false"], copied)[1]


def test_given_again_it_is_left_as_it_is(copied: Path) -> None:
    before = (copied / "mixed/result.json").read_bytes()
    assert commands.finish(["mix", "runs=members", "out=mixed"], copied)[0] == 0
    assert (copied / "mixed/result.json").read_bytes() == before
    said = complaint(copied, "mix", "runs=members/a,members/b", "out=mixed")
    assert "mixed holds another run" in said


def test_a_folder_of_its_own_says_what_it_is(finished: Path) -> None:
    code, said = commands.finish(["mix", "runs=members/c,members/a", "paths.runs=here"], finished)
    assert code == 0, said
    (path,) = (finished / "here").iterdir()
    assert re.fullmatch(r"mixture-toy-s5-[0-9a-f]{8}", path.name)
    assert len(load_model(path).members) == 2
    before = (path / "result.json").read_bytes()
    assert commands.finish(["mix", "runs=members/a,members/c", "paths.runs=here"], finished)[0] == 0
    assert list((finished / "here").iterdir()) == [path]
    assert (path / "result.json").read_bytes() == before


def test_one_that_was_killed_is_finished_by_the_same_command(copied: Path) -> None:
    shutil.rmtree(copied / "mixed")
    for again in range(3):  # what was killed has everything but a record; then it is among the runs that are found
        code, said = commands.finish(["mix", "runs=members", "paths.runs=members"], copied)
        assert code == 0, said
        (path,) = (copied / "members").glob("mixture-*")
        if not again:
            (path / "result.json").unlink()


def test_a_record_does_not_say_where_things_lie(copied: Path, tmp_path: Path) -> None:
    far = tmp_path / "somebody/secret/folder/mixed"
    words = [f"runs={copied}/members/a,{copied}/members/b", f"out={far}", "samples=3"]
    code, said = commands.finish(["mix", *words], copied)
    assert code == 0, said
    record = (far / "result.json").read_text()
    assert str(tmp_path) not in record
    assert "moved" not in record
    assert json.loads(record)["overrides"] == ["samples=3"]
    assert len(load_model(far).members) == 2


def test_a_member_that_has_changed_or_is_gone_is_refused(copied: Path) -> None:
    train(copied, "other", "model.order=transposed_lr", "seed=6")
    shutil.copy(copied / "other/checkpoints/best.ckpt", copied / "members/b/checkpoints/best.ckpt")
    assert re.search(r"members/b, a member of it, has changed since", complaint(copied, "evaluate", "run=mixed"))
    (copied / "members/b/checkpoints/best.ckpt").unlink()
    assert re.search(r"members/b, a member of it, is no longer there", complaint(copied, "evaluate", "run=mixed"))


def test_what_needs_an_order_is_refused(finished: Path) -> None:
    said = complaint(finished, "complete", "run=mixed")
    assert "mixed is a mixture: it has no order of its own" in said


def test_what_cannot_be_mixed_is_refused(copied: Path) -> None:
    assert "missing: runs" in complaint(copied, "mix")
    assert "needs two or more finished runs, found 1 " in complaint(copied, "mix", "runs=members/a")
    assert "found 0 on static " in complaint(copied, "mix", "runs=members", "only=static")
    assert "name the members of mixed instead" in complaint(copied, "mix", "runs=members,mixed")
    train(copied, "large", "data.side=4")
    said = complaint(copied, "mix", "runs=members,large")
    assert "must have been trained on the same images, got 1 of toy 4×4, 3 of toy 3×3" in said
    (copied / "members/c/result.json").unlink()
    assert "unfinished: members/c. Finish these runs or leave them out" in complaint(copied, "mix", "runs=members")


# ---- average=steps: networks in one order ------------------------------------------------------------


def stepwise(order: str = "spiral") -> StepMixture:
    return StepMixture(
        [build(name, order=order, seed=seed) for seed, name in enumerate(("nade", "mlp", "fvsbn"))]
    ).eval()


def test_mean_probabilities_of_steps_are_a_density() -> None:
    model, x = stepwise(), every_image()
    assert model.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)
    expected = sum(member.conditionals(x[:, member.order]).sigmoid() for member in model.networks) / 3
    torch.testing.assert_close(model.conditionals(x[:, model.order]).sigmoid(), expected, rtol=1e-12, atol=0)
    each = torch.stack([member.log_prob(x) for member in model.networks])
    assert (model.log_prob(x) > each.mean(0)).all()  # Jensen, at each step
    assert (
        model.log_prob(x) - Mixture(list(model.networks)).log_prob(x)
    ).abs().max() > 0.01  # and no mixture of images


def test_it_meets_the_contract_of_a_model_in_every_order() -> None:
    model, x = stepwise().reordered("transposed_lr"), every_image()
    assert model.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert not torch.allclose(model.log_prob(x), stepwise().log_prob(x))
    u = torch.rand(50, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.equal(model.draw(u), AutoregressiveDensity.draw(model, u))  # along the walks, and by fixed point
    z = x[::7, model.order]
    walk, steps = model.walk(len(z)), []
    for t in range(9):
        steps.append(walk.send(z[:, t - 1]) if t else next(walk))
    torch.testing.assert_close(torch.stack(steps, 1), model.conditionals(z), rtol=1e-10, atol=1e-10)


def test_improbable_steps_keep_their_digits() -> None:
    model = StepMixture([build("fvsbn", shape=(1, 2)), build("fvsbn", shape=(1, 2))]).eval()
    with torch.no_grad():
        for member, bias in zip(model.networks, (-800.0, -900.0), strict=True):
            member.alpha0.fill_(bias)
    assert model.conditionals(torch.zeros(1, 2, dtype=torch.float64))[0, 0].item() == pytest.approx(-800 - math.log(2))


@pytest.mark.parametrize(
    "networks",
    [
        [build("nade")],
        [build("nade"), build("mlp", order="spiral")],
        [build("nade"), Mixture([build("mlp"), build("fvsbn")])],
        [OrderEnsemble(build("nade"), 2), build("nade")],
        [OrderEnsemble(build("nade"), 2), OrderEnsemble(build("mlp"), 3)],
    ],
)
def test_steps_are_those_of_one_order(networks: list[BinaryDensity]) -> None:
    with pytest.raises(ValueError, match="steps are averaged over "):
        in_steps(networks)


def test_in_several_orders_it_is_averaged_in_each() -> None:
    orders, x = ["transposed", "raster_ud"], every_image()
    ensembles = [OrderEnsemble(build(name), orders) for name in ("nade", "mlp")]
    found = in_steps(ensembles).eval()
    each = [StepMixture([e.density.reordered(o) for e in ensembles]).eval().log_prob(x).exp() for o in orders]
    torch.testing.assert_close(found.log_prob(x).exp(), sum(each) / 2)


def test_a_run_directory_of_averaged_steps(finished: Path) -> None:
    train(finished, "second", "model=nade", "model.hidden=4", "seed=6")
    code, said = commands.finish(["mix", "runs=members/a,second", "average=steps", "out=steps"], finished)
    assert code == 0, said
    record, model = Record.read(finished / "steps"), load_model(finished / "steps")
    assert isinstance(model, StepMixture)
    assert (record.name, record.order) == ("mixture of 2 fvsbn + nade, step by step", "raster")
    toy = Toy()
    toy.setup("test")
    assert record.test.mean == pytest.approx(-model.log_prob(toy.test).mean().item(), abs=1e-5)
    for run in ("members/a", "second", "steps"):
        code, said = commands.finish(["certify", f"run={run}", "n=20"], finished)
        assert code == 0, said
    checks = json.loads((finished / "steps/certificate.json").read_text())["checks"]
    assert {name: check["passed"] for name, check in checks.items()} == dict.fromkeys(checks, True)
    assert commands.finish(["complete", "run=steps", "observed=top", "n=2"], finished)[0] == 0
    assert commands.finish(["compress", "run=steps", "file=x.bin"], finished)[0] == 0
    said = complaint(finished, "mix", "runs=members/a,members/b", "average=steps", "out=no")
    assert "members/b (transposed_lr)" in said
    assert not (finished / "no").exists()
    assert "average must be images or steps" in complaint(finished, "mix", "runs=members", "average=logits")


# ---- one network in several orders -------------------------------------------------------------------


@pytest.fixture(scope="module")
def any_order(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a model of any order, ``run``."""
    where = tmp_path_factory.mktemp("orders")
    anyorder.train(where / "run")
    return where


def test_one_run_in_several_orders(any_order: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anyorder.command(monkeypatch, any_order, "mix", "run=run", "orders=4", "out=ensemble", "seed=2")
    ensemble = load_model(any_order / "ensemble")
    assert isinstance(ensemble, OrderEnsemble)
    assert ensemble.orders == [f"random-{k}" for k in range(8, 12)]
    one = load_model(any_order / "run")
    record = Record.read(any_order / "ensemble")
    assert (record.parameters.count, record.order) == (one.parameter_count, "4 orders")
    assert record.name.startswith("mixture of 4 orders of ")
    toy = Toy()
    toy.setup("test")
    each = torch.stack([one.reordered(order).double().log_prob(toy.test) for order in ensemble.orders])
    nll = -(each.logsumexp(0) - math.log(4))
    assert record.test.mean == pytest.approx(nll.mean().item(), abs=1e-5)
    anyorder.command(monkeypatch, any_order, "certify", "run=ensemble", "n=20")
    found = verdict(any_order / "ensemble", record)
    assert found is not None
    assert found.certified
    checks = json.loads((any_order / "ensemble/certificate.json").read_text())["checks"]
    assert {name: check["passed"] for name, check in checks.items()} == dict.fromkeys(checks, True)


def test_ensembles_are_mixed_like_any_run(any_order: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, orders in (("x", "2"), ("y", "[raster,spiral]")):
        anyorder.command(monkeypatch, any_order, "mix", "run=run", f"orders={orders}", f"out=both/{name}")
    anyorder.command(monkeypatch, any_order, "mix", "runs=both", "out=all")
    model, x = load_model(any_order / "all"), every_image()
    parts = [load_model(any_order / "both" / name).log_prob(x).exp() for name in "xy"]
    torch.testing.assert_close(model.log_prob(x).exp(), sum(parts) / 2)


def test_a_model_of_one_order_is_not_mixed_in_others(finished: Path) -> None:
    said = complaint(finished, "mix", "run=members/a", "orders=16")
    assert "members/a was trained in one order, and is a poor model in others: mix runs of several orders" in said
    assert "give one of the two" in complaint(finished, "mix", "runs=members", "orders=16")
    assert "missing: runs" in complaint(finished, "mix", "run=members/a")
