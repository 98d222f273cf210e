"""NADE's conditionals: one function, several implementations of it.

    a_t = c + Σ_{j<t} z_j W[j],   h_t = σ(a_t),   logit_t = b_t + V[t]·h_t

``conditionals`` picks the implementation: ``numba`` on a CPU in float32, ``triton`` on a CUDA device in float32,
``torch`` (the reference, in any precision) everywhere else. numba and Triton are imported when first needed; where
one is missing, ``auto`` does without it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chainrule.kernels import nade_torch

KERNELS = ("auto", "numba", "triton", "torch")
COMPILED = {"numba": "cpu", "triton": "cuda"}  # and the kind of device that each serves, in float32 only


def check(kernel: str) -> str:
    """Returns ``kernel`` or says which names there are."""
    if kernel not in KERNELS:
        raise ValueError(f"model.kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    return kernel


def backend(kernel: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the implementation that serves parameters of this type on this device.

    Raises:
        ValueError: ``kernel`` asks for one that cannot.
    """
    if check(kernel) == "auto":
        return next((name for name in COMPILED if not _obstacle(name, device, dtype)), "torch")
    if kernel in COMPILED and (obstacle := _obstacle(kernel, device, dtype)):
        raise ValueError(f"model.kernel={kernel} cannot run: {obstacle}. Choose model.kernel=auto")
    return kernel


def conditionals(z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, *, kernel: str = "auto") -> Tensor:
    """Logits of all steps: z (B, n) bits, W and V (n, d), c (d,), b (n,) → (B, n)."""
    name = backend(kernel, W.device, W.dtype)
    if name == "torch":
        return nade_torch.conditionals(z.to(W.dtype), W, c, V, b)
    logits: Tensor = _Conditionals.apply(name, z, W, c, V, b)
    return logits


def draw(u: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, *, kernel: str = "auto") -> Tensor | None:
    """The whole walk in one call: uniforms u (B, n) → bits (B, n); None where no compiled walk serves."""
    if u.dtype != W.dtype or backend(kernel, W.device, W.dtype) != "numba":
        return None
    z: Tensor = _module("numba").draw(u, W, c, V, b)
    return z


def compiled_walks(*tensors: Tensor) -> ModuleType | None:
    """The other models' compiled walks, if they serve these uniforms and parameters."""
    if any(_obstacle("numba", x.device, x.dtype) for x in tensors):
        return None
    return import_module("chainrule.kernels.sampling_numba")


class _Conditionals(torch.autograd.Function):
    """Binds a compiled module's ``forward`` and ``backward`` together; bits have no gradient."""

    @staticmethod
    def forward(ctx: Any, name: str, *given: Tensor) -> Tensor:  # noqa: ANN401
        logits: Tensor
        logits, saved = _module(name).forward(*given)
        if any(ctx.needs_input_grad):
            ctx.name = name
            ctx.save_for_backward(*given, *saved)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        z, W, c, V, b, *saved = ctx.saved_tensors
        return None, None, *_module(ctx.name).backward(grad_logits, z, W, c, V, b, tuple(saved))


def _obstacle(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why a compiled implementation cannot serve; nothing if it can."""
    if device.type != COMPILED[name]:
        return f"it serves {COMPILED[name]} tensors, not {device.type}"
    if dtype != torch.float32:
        return f"it serves float32, not {str(dtype).removeprefix('torch.')}"
    return _failure(name)


@cache
def _failure(name: str) -> str:
    try:
        _module(name)
    except ImportError as error:
        return f"its import failed ({error}); install it with pip install {name}"
    return ""


def _module(name: str) -> ModuleType:
    return import_module(f"chainrule.kernels.nade_{name}")
