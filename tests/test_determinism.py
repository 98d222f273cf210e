"""Training twice gives the same bits, with as many threads as there are; with other threads, nearly the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from zoo import MODELS, build

SIDE, STEPS = 28, 10  # large enough for products and loops to be shared out between threads

SIZES: dict[str, dict[str, int]] = {
    "nade": {"hidden": 500},
    "mlp": {"hidden": 4, "block": 28},
    "pixelcnn": {"patch": 2},
    "transformer": {"patch": 2},
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(model: str, threads: int) -> dict[str, Tensor]:
    """The weights after some steps of Adam on images that are as dark as digits."""
    torch.set_num_threads(threads)
    torch.manual_seed(3)
    density = build(model, shape=(SIDE, SIDE), **SIZES.get(model, {})).float()
    optimizer = torch.optim.Adam(density.parameters(), lr=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        x = (torch.rand(100, SIDE * SIDE) < 0.13).float()
        (density.loss(x).mean() - density.log_prior() / 1000).backward()
        optimizer.step()
    return {name: value.clone() for name, value in density.state_dict().items()}


@pytest.mark.parametrize("model", [model for model in MODELS if model != "tabular"])
def test_the_same_training_gives_the_same_bits(model: str) -> None:
    weights, again, alone = train(model, 2), train(model, 2), train(model, 1)
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert all(torch.allclose(alone[name], weights[name], rtol=0, atol=1e-3) for name in weights)
