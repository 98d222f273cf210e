"""MADE beyond what every model must do."""

from __future__ import annotations

import pytest
import torch
from zoo import build

from chainrule import testing
from chainrule.density import AutoregressiveDensity
from chainrule.models import made
from chainrule.models.made import MADE
from chainrule.nn.triangular import TriangularLinear


@pytest.mark.parametrize("hidden", [[], 30, [30, 5, 40], [3]])
@pytest.mark.parametrize("direct", [True, False])
def test_any_depth_and_width(hidden: int | list[int], direct: bool) -> None:
    for invariant in testing.INVARIANTS:
        invariant(build("made", hidden=hidden, direct=direct))


def test_whether_all_is_seen_depends_on_the_degrees_that_there_are() -> None:
    assert build("made", hidden=[8], direct=False).sees_all
    assert not build("made", hidden=[8, 7], direct=False).sees_all
    assert build("made", hidden=[8, 7], direct=True).sees_all


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_the_walk_in_blocks_of_every_size(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "STEPS", steps)
    testing.walk(build("made", order="spiral"))
    testing.drawing(build("made").reordered("random-2"))


def test_drawing_computes_no_unit_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, width = build("made", shape=(12, 12), hidden=[50, 70]).float(), 0

    def counting(x: torch.Tensor) -> torch.Tensor:
        nonlocal width
        width += len(x)
        return x.clamp(min=0)

    monkeypatch.setattr(made.F, "relu", counting)
    model.draw(torch.rand(3, 144))
    assert width == 50 + 70


@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_change_the_speed_and_nothing_else(block: int) -> None:
    x = testing.every_image(9)
    whole, blocks = build("made", block=7), build("made", block=block)
    torch.testing.assert_close(blocks.log_prob(x), whole.log_prob(x), rtol=1e-12, atol=1e-12)
    for model in (whole, blocks):
        model.log_prob(x).sum().backward()
    for a, b in zip(blocks.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)


def test_a_triangular_layer_is_one_with_a_mask() -> None:
    inputs, outputs = torch.tensor([1, 1, 2, 4, 4, 7]), torch.tensor([0, 1, 1, 3, 4, 9, 9])
    layer = TriangularLinear(inputs, outputs, block=3).double()
    mask = inputs[:, None] <= outputs
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(x), x @ (layer.weight * mask) + layer.bias)
    assert layer.effective_parameter_count == int(mask.sum()) + 7
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradcheck(lambda w, b: layer(x.detach(), w, b), (layer.weight, layer.bias))


def test_several_orders_in_one_network_train_the_same_weights() -> None:
    model, x = build("made"), testing.every_image(9)
    for order in ("raster", "random-1"):
        model.zero_grad()
        model.reordered(order).log_prob(x).sum().backward()
        reached = [int(p.grad.count_nonzero()) for p in model.parameters()]
        assert all(reached)


def test_dropout_is_for_training_only() -> None:
    model, x = build("made", dropout=0.5), testing.every_image(9)
    assert torch.equal(model.log_prob(x), build("made").log_prob(x))
    assert not torch.equal(model.train().log_prob(x), model.log_prob(x))


def test_smoothness_is_that_of_the_first_and_the_last_weights() -> None:
    model = build("made", order="spiral", smoothness=0.7)
    grid = model.own_order.argsort().view(3, 3)
    expected = 0.0
    for rows in (model.layers[0].weight.detach(), model.layers[-1].weight.detach().T):
        image = rows[grid]  # (3, 3, d)
        expected -= 0.35 * sum(float(image.diff(dim=dim).square().sum()) for dim in (0, 1))
    assert model.log_prior().item() == pytest.approx(expected, rel=1e-6)


def test_a_sample_of_many_images_is_that_of_fixed_point_iteration() -> None:
    model = MADE(shape=(14, 14), hidden=[100, 120]).eval()
    testing.perturbed(model)
    u = torch.rand(50, 196, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.double().draw(u), AutoregressiveDensity.draw(model, u))
