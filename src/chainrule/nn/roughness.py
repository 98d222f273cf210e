"""The quadratic form of a graph's Laplacian: how rough numbers are on a graph."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


class Laplacian(nn.Module):
    """½ Σ w_ij ‖x_i − x_j‖² over the edges (i, j) of a graph: ½ xᵀLx, where L is the graph's Laplacian.

    L has a number for each node and two for each edge, so it is stored and multiplied as a sparse matrix.

    Args:
        nodes: how many there are.
        edges: the two nodes i and j of each, (2, edges); an edge stands here once. See :func:`edges`.
        weights: w, (edges,).
    """

    begins: Tensor  # (nodes + 1,): where the entries of each row of L begin among all
    columns: Tensor
    entries: Tensor

    def __init__(self, nodes: int, edges: Tensor, weights: Tensor) -> None:
        super().__init__()
        every = torch.arange(nodes)
        degrees = torch.zeros(nodes, dtype=weights.dtype).index_add(0, edges.flatten(), weights.repeat(2))
        rows, columns = torch.cat([edges.flatten(), every]), torch.cat([edges.flip(0).flatten(), every])
        place = (rows * nodes + columns).argsort()
        begins = torch.cat([torch.zeros(1, dtype=torch.int64), rows.bincount(minlength=nodes).cumsum(0)])
        # int32: half of what a product reads would be 64-bit column numbers.
        self.register_buffer("begins", begins.int(), persistent=False)
        self.register_buffer("columns", columns[place].int(), persistent=False)
        self.register_buffer("entries", torch.cat([-weights, -weights, degrees])[place], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The form, a scalar, of x (nodes, d)."""
        # Lx is the gradient of ½ xᵀLx as well: no more is differentiated.
        energy = (x * self.times(x.detach())).sum()
        return energy - energy.detach() / 2

    def times(self, x: Tensor) -> Tensor:
        """L·x, (nodes, d): for each node the sum, over its neighbours, of w · (it − the neighbour)."""
        # There are no sparse products in bfloat16.
        with warnings.catch_warnings(), torch.autocast(x.device.type, enabled=False):
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            # Put together anew each time, which costs nothing: torch can neither copy nor pickle the finished one.
            L = torch.sparse_csr_tensor(
                self.begins, self.columns, self.entries, (len(x), len(x)), check_invariants=False
            )
            # With a vector it is twice as fast, but on a CPU only MKL knows that product.
            vector = x.shape[1] == 1 and (x.is_cuda or torch.backends.mkl.is_available())
            product: Tensor = torch.mv(L, x[:, 0])[:, None] if vector else torch.sparse.mm(L, x)
            return product


def edges(*neighbours: tuple[Tensor, Tensor]) -> Tensor:
    """Two tensors of one shape hold nodes, and those that stand in the same place are neighbours: (2, edges).

    Where one of them is negative, there is no such node, and so no edge.
    """
    pairs = torch.cat([torch.stack([a.flatten(), b.flatten()]) for a, b in neighbours], 1)
    return pairs[:, (pairs >= 0).all(0)]


def of_pixels(order: Tensor, shape: tuple[int, int]) -> Laplacian:
    """½ Σ ‖row of a pixel − row of its neighbour‖² over all pixels that are one below or right of another.

    Strokes look alike wherever they are, so what a pixel says to a hidden unit, and what that says of a pixel, changes
    slowly over the image. The rows (n, d) are in chain order.
    """
    step = order.cpu().argsort().view(shape)
    pairs = edges((step[:-1], step[1:]), (step[:, :-1], step[:, 1:]))
    return Laplacian(len(order), pairs, torch.ones(pairs.shape[1]))
