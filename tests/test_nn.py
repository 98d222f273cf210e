"""Layers that models share, each alone: which inputs an output sees, exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from zoo import every_image

from chainrule.models.pixelcnn import PixelCNN
from chainrule.nn.causal_conv import RowsAbove, RowSoFar
from chainrule.nn.truth_table import contexts, look_up

ROWS, COLUMNS = 5, 6
CELLS = list(itertools.product(range(ROWS), range(COLUMNS)))


def seen(layer: torch.nn.Module, x: torch.Tensor) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """For every output position the input positions with a derivative that is not 0."""
    jacobian = torch.autograd.functional.jacobian(layer, x)[0, :, :, :, 0].abs().sum((2, -1)) > 0
    return {(r, c): {(i, j) for i, j in CELLS if jacobian[r, c, i, j]} for r, c in CELLS}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("window", [(2, 3), (1, 5), (4, 3)])
def test_rows_above_are_seen_whole_and_the_own_row_only_where_allowed(window: tuple[int, int], strict: bool) -> None:
    layer, x = RowsAbove(2, 3, window, strict=strict).double(), torch.randn(1, ROWS, COLUMNS, 2, dtype=torch.float64)
    for (r, c), cells in seen(layer, x).items():
        rows = range(r - window[0] + 1 - strict, r + 1 - strict)
        assert cells == {(i, j) for i, j in CELLS if i in rows and abs(j - c) <= window[1] // 2}
    expected = layer(x)
    for y in range(ROWS):  # row by row, with what is below unknown
        known = x.clone()
        known[:, y + 1 - strict :] = float("nan")
        torch.testing.assert_close(layer.row(known, y), expected[:, y])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_a_row_so_far_is_seen_up_to_the_own_position(width: int, strict: bool) -> None:
    layer, x = RowSoFar(2, 3, width, strict=strict).double(), torch.randn(1, ROWS, COLUMNS, 2, dtype=torch.float64)
    for (r, c), cells in seen(layer, x).items():
        assert cells == {(r, j) for j in range(c - width + 1 - strict, c + 1 - strict) if j >= 0}
    expected = layer(x)
    for y, column in CELLS:
        known = x[:, y].clone()
        known[:, column + 1 - strict :] = float("nan")
        torch.testing.assert_close(layer.at(known, column), expected[:, y, column])


def test_a_truth_table_is_numbered_by_the_bits_so_far() -> None:
    bits = every_image(4)
    table = torch.arange(15.0, dtype=torch.float64).expand(16, 15)
    for image, entries in zip(bits.int().tolist(), look_up(table, bits).int().tolist(), strict=True):
        assert entries == [2**t - 1 + int("".join(map(str, image[:t])) or "0", 2) for t in range(4)]
    assert contexts(bits).unique().tolist() == list(range(15))


def test_two_streams_have_no_blind_spot() -> None:
    """With enough blocks the last position sees every other one: those to the right, just one row up, as well."""
    model = PixelCNN(shape=(6, 6), channels=4, blocks=5, patch=1, first=[1, 3], window=[2, 3]).double().eval()
    z = torch.zeros(1, 36, dtype=torch.float64)
    before = model.conditionals(z)
    for t in range(36):
        flipped = z.clone()
        flipped[0, t] = 1
        changed = (model.conditionals(flipped) != before)[0]
        assert not changed[: t + 1].any()
        assert changed[t + 1 :][-1:].all()
        assert changed[30:].all() or t >= 24  # the whole last row sees every pixel of the rows above the last but one
