"""A masked linear layer whose units are sorted, so that the mask is a staircase and what is above it is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Blocks = Sequence[tuple[slice, int, int, Tensor]]


class TriangularLinear(nn.Module):
    """(B, K) → (B, N): an output sees the inputs whose degree is at most its own.

    The weight is stored as a whole, (K, N), with the half that is masked: another order of pixels needs it. Outputs
    are computed in blocks, each from the inputs that its last output sees; so nearly half of a dense product is
    skipped, forwards and backwards.

    Args:
        inputs: degrees of the inputs, (K,), ascending.
        outputs: degrees of the outputs, (N,), ascending.
        block: outputs computed together; changes the speed, not the function.
        scale: times √(2/K), the standard deviation of the initial weights (He et al., ICCV 2015).
        bias: whether there is one.
    """

    def __init__(self, inputs: Tensor, outputs: Tensor, *, block: int, scale: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(inputs), len(outputs)) * scale * (2 / max(1, len(inputs))) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(len(outputs))) if bias else None
        self.seen: list[int] = torch.searchsorted(inputs, outputs, right=True).tolist()  # by each: the first so many
        self.block = block
        for start in range(0, len(outputs), block):
            seen = torch.tensor(self.seen[start : start + block])
            mask = torch.arange(int(seen[0]), int(seen[-1]))[:, None] < seen
            self.register_buffer(f"mask{start}", mask.to(self.weight.dtype), persistent=False)

    @property
    def effective_parameter_count(self) -> int:
        return sum(self.seen) + (0 if self.bias is None else len(self.bias))

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The outputs with the weights given, or its own."""
        weight, bias = self.weight if weight is None else weight, self.bias if bias is None else bias
        bias = weight.new_zeros(len(self.seen)) if bias is None else bias
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = _Triangular.apply(self._blocks(), x, weight, bias)
        return y

    def _blocks(self) -> Blocks:
        """Of each: its outputs; how many inputs the first of them sees, and the last; the mask between the two."""
        starts = range(0, len(self.seen), self.block)
        stops = [min(start + self.block, len(self.seen)) for start in starts]
        return [
            (slice(start, stop), self.seen[start], self.seen[stop - 1], self.get_buffer(f"mask{start}"))
            for start, stop in zip(starts, stops, strict=True)
        ]


class _Triangular(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blocks: Blocks, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ANN401
        y, masked = x.new_empty(len(x), len(bias)), []
        for outputs, inner, outer, mask in blocks:
            masked.append(weight[:outer, outputs].clone(memory_format=torch.contiguous_format))
            masked[-1][inner:].mul_(mask)
            torch.addmm(bias[outputs], x[:, :outer], masked[-1], out=y[:, outputs])
        ctx.blocks, ctx.size = blocks, weight.shape
        ctx.save_for_backward(x, *masked)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, *masked = ctx.saved_tensors
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        grad_weight = x.new_empty(ctx.size)
        for (outputs, inner, outer, mask), weight in zip(ctx.blocks, masked, strict=True):
            torch.mm(x[:, :outer].T, g[:, outputs], out=grad_weight[:outer, outputs])
            grad_weight[inner:outer, outputs].mul_(mask)
            grad_weight[outer:, outputs].zero_()
            if grad_x is not None:
                grad_x[:, :outer].addmm_(g[:, outputs], weight.T)
        return None, grad_x, grad_weight, g.sum(0)


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, order: Tensor) -> Tensor:  # noqa: ANN401
        ctx.dim = dim
        ctx.save_for_backward(order)
        return x.index_select(dim, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (order,) = ctx.saved_tensors
        return g.index_select(ctx.dim, order.argsort()), None, None


def permuted(x: Tensor, dim: int, order: Tensor) -> Tensor:
    """``x.index_select(dim, order)`` for a permutation, whose gradient is another one and no sum."""
    y: Tensor = _Permuted.apply(x, dim, order)
    return y
