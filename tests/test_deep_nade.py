"""Orderless NADE beyond what every model must do."""

from __future__ import annotations

import itertools

import pytest
import torch
from hydra.errors import InstantiationException
from zoo import build

from chainrule import testing
from chainrule.mixture import OrderEnsemble
from chainrule.models import deep_nade
from chainrule.models.deep_nade import DeepNADE

EVERY_ORDER = list(itertools.permutations(range(4)))


@pytest.mark.parametrize("hidden", [5, [5], [4, 3, 6]])
def test_any_depth(hidden: int | list[int]) -> None:
    for invariant in testing.INVARIANTS:
        invariant(build("deep_nade", hidden=hidden))
    with pytest.raises(InstantiationException, match="at least one layer"):
        build("deep_nade", hidden=[])


def test_the_loss_is_the_nll_of_a_random_order_in_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build("deep_nade", shape=(2, 2)), testing.every_image(4)
    expected = -torch.stack([model.reordered(order).log_prob(x) for order in EVERY_ORDER]).mean(0)
    losses = []
    for order, k in itertools.product(EVERY_ORDER, range(len(x))):
        keys, first = torch.empty(4), torch.tensor((k + 0.5) / len(x))  # where in [0, 1) the batch begins
        keys[list(order)] = torch.arange(4.0)  # whose ranks are the order
        drawn = {(): first, x.shape: keys.expand(x.shape)}
        monkeypatch.setattr(torch, "rand", lambda size, drawn=drawn, **_: drawn[tuple(size)])
        losses.append(model.loss(x))
    torch.testing.assert_close(torch.stack(losses).mean(0), expected, rtol=1e-12, atol=1e-12)


def test_a_batch_spreads_the_numbers_of_observed_pixels_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build("deep_nade", shape=(2, 5)), []
    logits = model._logits
    monkeypatch.setattr(model, "_logits", lambda x, m: (seen.append(m), logits(x, m))[1])
    model.loss(torch.zeros(20, 10))
    assert sorted(seen[0].sum(1).tolist()) == [d for d in range(10) for _ in range(2)]


def test_the_loss_draws_every_number_and_set_of_observed_pixels_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build("deep_nade", shape=(1, 3)), []
    logits = model._logits
    monkeypatch.setattr(model, "_logits", lambda x, m: (seen.append(m), logits(x, m))[1])
    torch.manual_seed(0)
    model.loss(torch.zeros(6000, 3))
    numbers = torch.cat(seen) @ torch.tensor([1.0, 2, 4], dtype=torch.float64)
    # 0, 1 or 2 of 3 are observed, each third of the time, and each set of as many alike.
    expected = torch.tensor([3, 1, 1, 1, 1, 1, 1, 0]) / 9
    counts = torch.bincount(numbers.long(), minlength=8)
    assert (counts / 6000 - expected).abs().max() < 0.02


def test_any_order_is_a_density_of_the_same_weights() -> None:
    model, x = build("deep_nade"), testing.every_image(9)
    twins = [model.reordered(order) for order in ("random-1", "spiral", "transposed_ud")]
    nats = [twin.log_prob(x) for twin in twins]
    for a, b in itertools.combinations(nats, 2):
        assert not torch.allclose(a, b)
    for twin in twins:
        testing.normalization(twin)
        testing.drawing(twin)
    ensemble = OrderEnsemble(model, orders=4).eval()
    assert ensemble.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert ensemble.parameter_count == model.parameter_count


@pytest.mark.parametrize("elements", [1, 7 * 512 * 2, 7 * 512 * 4])
def test_chunks_change_nothing_but_memory(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build("deep_nade", order="spiral"), testing.every_image(9)
    whole = model.log_prob(x)
    whole.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    monkeypatch.setattr(deep_nade, "CHUNK_ELEMENTS", elements)
    model.zero_grad()
    nats = model.log_prob(x)
    nats.sum().backward()
    torch.testing.assert_close(nats, whole, rtol=1e-12, atol=1e-12)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-10, atol=1e-10)


def test_a_likelihood_holds_few_activations_at_once() -> None:
    model, largest = DeepNADE(shape=(28, 28), hidden=[64, 64]).eval(), 0
    deep = model._deep

    def watched(a: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, a.numel())
        return deep(a)

    model._deep = watched  # type: ignore[method-assign]
    model.log_prob(torch.zeros(500, 784))
    assert largest <= deep_nade.CHUNK_ELEMENTS


def test_dropout_is_for_training_only() -> None:
    model, x = build("deep_nade", dropout=0.5), testing.every_image(9)
    assert torch.equal(model.log_prob(x), build("deep_nade").log_prob(x))
    torch.manual_seed(0)
    dropped = model.train().loss(x)
    torch.manual_seed(0)
    assert not torch.equal(model.eval().loss(x), dropped)


def test_smoothness_is_that_of_all_that_belongs_to_pixels() -> None:
    model = build("deep_nade", order="spiral", smoothness=0.7)
    images = [x.detach().view(3, 3, -1) for x in (model.W, model.U, model.V)]
    roughness = sum(float(image.diff(dim=dim).square().sum()) for image in images for dim in (0, 1))
    assert model.log_prior().item() == pytest.approx(-0.35 * roughness, rel=1e-6)
