"""One network in several orders: trained, selected, loaded and scored as their mixture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import finish
from zoo import build, every_image

import chainrule
from chainrule.data import Toy
from chainrule.evaluation.sampling import mask
from chainrule.mixture import OrderEnsemble
from chainrule.orders import GRID_ORDERS


def test_what_is_averaged_is_the_probability_of_an_image_and_parameters_are_counted_once() -> None:
    arguments = {"patch": 2, "told": True}
    network, x = build("pixelcnn", (4, 4), **arguments), every_image(16)[::97]
    ensemble = OrderEnsemble(network, "grid").eval()
    each = torch.stack(
        [build("pixelcnn", (4, 4), patch=2, told=True, order=order).log_prob(x) for order in GRID_ORDERS]
    )
    torch.testing.assert_close(ensemble.log_prob(x), each.exp().mean(0).log(), rtol=1e-12, atol=1e-12)
    assert ensemble.parameter_count == network.parameter_count
    total = sum(ensemble.log_prob(part).exp().sum().item() for part in every_image(16).split(8192))
    assert total == pytest.approx(1, abs=1e-12)


def test_the_loss_is_the_nll_in_one_of_the_orders() -> None:
    ensemble, x = OrderEnsemble(build("pixelcnn", told=True), ["raster", "transposed_180"]), every_image()[::5]
    members = [-member.log_prob(x) for member in ensemble.members]
    met = set()
    for _ in range(20):
        loss = ensemble.loss(x)
        met |= {k for k, nll in enumerate(members) if torch.equal(loss, nll)}
    assert met == {0, 1}


def test_a_network_that_is_told_its_order_learns_of_all_of_them() -> None:
    network = build("pixelcnn", told=True)
    ensemble = OrderEnsemble(network, "grid")
    ensemble.log_prob(every_image()).sum().backward()
    assert network.told.grad.ne(0).all(1).all()


@pytest.mark.slow
def test_it_is_trained_loaded_and_scored_as_a_mixture(tmp_path: Path) -> None:
    small = ["model.channels=4", "model.blocks=1", "model.told=true", "model.first=[2,3]", "data.side=4", "samples=1"]
    settings = [*small, "orders=grid", "logger=none", "trainer.max_epochs=2", "trainer.enable_progress_bar=false"]
    record = chainrule.train(model="pixelcnn", data="toy", overrides=[*settings, f"paths.runs={tmp_path}"])
    model = chainrule.load_model(record.path)
    assert isinstance(model, OrderEnsemble)
    assert record.order == "8 orders"
    assert record.parameters.count == model.density.parameter_count
    assert record.test.mean < 16 * math.log(2)
    assert chainrule.train(model="pixelcnn", data="toy", overrides=[*settings, f"paths.runs={tmp_path}"]) == record


def test_what_needs_an_order_takes_one_of_them(tmp_path: Path) -> None:
    settings = ["orders=[raster,transposed_lr]", "logger=none", "trainer.max_epochs=1", "model.hidden=5"]
    chainrule.train(model="nade", data="toy", overrides=settings, run_dir=tmp_path / "run")
    network = chainrule.load_model(tmp_path / "run").density
    for observed, order in (("top", "raster"), ("right", "transposed_lr")):
        words = ["complete", "run=run", f"observed={observed}", "n=2", "draws=3", "out=bits.npy"]
        code, said = finish(words, tmp_path)
        assert code == 0, said
        seen, toy = mask(observed, (3, 3), torch.Generator()), Toy()
        toy.setup("test")
        x = toy.test[torch.randperm(len(toy.test), generator=torch.Generator().manual_seed(0))[:2]]
        x = x.repeat_interleave(3, 0)
        expected = network.reordered(order).complete(x, seen, torch.Generator().manual_seed(0))
        assert (np.load(tmp_path / "bits.npy").reshape(6, 9) == expected.numpy()).all()
    assert "no order of run begins" in finish(["complete", "run=run", "observed=centre"], tmp_path)[1]
    assert finish(["compress", "run=run", "file=x.bin", "order=transposed_lr"], tmp_path)[0] == 0
    assert finish(["decompress", "run=run", "file=x.bin", "order=transposed_lr"], tmp_path)[0] == 0
    assert (np.load(tmp_path / "x.bin.npy").reshape(-1, 9) == toy.test.numpy()).all()
    assert "by another model" in finish(["decompress", "run=run", "file=x.bin"], tmp_path)[1]
    said = finish(["compress", "run=run", "file=x", "order=spiral"], tmp_path)[1]
    assert "order must be raster or transposed_lr" in said


@pytest.mark.slow
def test_it_begins_from_a_network_in_one_order(tmp_path: Path) -> None:
    small = ["model.channels=4", "model.blocks=1", "model.first=[2,3]", "data.side=4", "samples=1", "logger=none"]
    settings = [*small, "trainer.enable_progress_bar=false", f"paths.runs={tmp_path}"]
    one = chainrule.train(model="pixelcnn", data="toy", overrides=[*settings, "trainer.max_epochs=1"])
    several = [*settings, "trainer.max_epochs=0", "model.told=true", "orders=grid", f"ckpt_path={one.path}"]
    record = chainrule.train(model="pixelcnn", data="toy", overrides=several)
    assert record.initialized_from == one.checkpoint_sha256
    network, x = chainrule.load_model(record.path).density, every_image(16)[::97].float()
    assert torch.equal(network.reordered("raster").log_prob(x), chainrule.load_model(one.path).log_prob(x))
    assert not network.told.any()
    code, said = finish(["certify", f"run={record.path}", "n=4"], tmp_path)
    assert code == 0, said
    with pytest.raises(ValueError, match=r"its weights are those of another model: here there is no .*blocks"):
        chainrule.train(model="fvsbn", data="toy", overrides=["data.side=4", *settings[4:], f"ckpt_path={one.path}"])
