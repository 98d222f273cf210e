"""Orders are permutations, and the ones their names promise."""

from __future__ import annotations

import pytest
import torch

from chainrule.orders import GRID_ORDERS, permutation

ORDERS = (*GRID_ORDERS, "spiral", "random", "random-3")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 6), (5, 2)])
def test_a_permutation(order: str, shape: tuple[int, int]) -> None:
    assert sorted(permutation(order, shape).tolist()) == list(range(shape[0] * shape[1]))


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("raster", [0, 1, 2, 3, 4, 5]),
        ("raster_lr", [2, 1, 0, 5, 4, 3]),
        ("raster_ud", [3, 4, 5, 0, 1, 2]),
        ("raster_180", [5, 4, 3, 2, 1, 0]),
        ("transposed", [0, 3, 1, 4, 2, 5]),
        ("transposed_lr", [2, 5, 1, 4, 0, 3]),
        ("transposed_ud", [3, 0, 4, 1, 5, 2]),
        ("transposed_180", [5, 2, 4, 1, 3, 0]),
        ("spiral", [0, 1, 2, 5, 4, 3]),
    ],
)
def test_of_two_rows_and_three_columns(order: str, expected: list[int]) -> None:
    assert permutation(order, (2, 3)).tolist() == expected


def test_the_eight_grid_orders_differ() -> None:
    assert len({tuple(permutation(order, (3, 3)).tolist()) for order in GRID_ORDERS}) == 8


def test_random_orders_are_the_same_everywhere() -> None:
    assert permutation("random-7", (3, 3)).tolist() == RANDOM_7
    assert torch.equal(permutation("random", (5, 5)), permutation("random-0", (5, 5)))
    assert not torch.equal(permutation("random-1", (5, 5)), permutation("random-0", (5, 5)))


RANDOM_7 = [8, 4, 1, 6, 3, 2, 7, 5, 0]  # argsort of the first nine words of Philox 4×64-10 with key 7


@pytest.mark.parametrize("order", ["rasta", "raster_", "raster-1", "random-x", "random--1", "spiral_lr", ""])
def test_unknown_names(order: str) -> None:
    with pytest.raises(ValueError, match=r"unknown order .*random-7"):
        permutation(order, (3, 3))


@pytest.mark.parametrize("order", [[0, 1], [0, 0, 1, 2], [1, 2, 3, 4]])
def test_lists_that_are_no_permutation(order: list[int]) -> None:
    with pytest.raises(ValueError, match=r"each pixel 0\.\.3 once"):
        permutation(order, (2, 2))
