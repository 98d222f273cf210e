"""NADE on a CPU in float32: likelihood, gradients and sampling as compiled loops over *distinct* hidden states.

    a_t = c + Σ_{j<t} z_j W[j],   h_t = σ(a_t),   logit_t = b_t + V[t]·h_t

h changes only after a pixel that is on, so an image of K such pixels has K + 1 states, and each state serves a
*run* of steps. Images that have seen no such pixel yet all share σ(c). Per image that leaves (K + 1)·d sigmoids and n·d
multiply-adds for the logits, again as many sigmoids and twice the multiply-adds for the gradients. What is left is
to keep them fed:

* Logits are shared out by images. A few rows of V at a time are copied to where they stay in the first-level cache,
  and every image of a group uses them before the next few come.
* Gradients are shared out by hidden units, which know nothing of each other once the logits' gradients are
  there: 64 of them at a time, so that their share of W, V and both gradients stays in the second-level cache, and the
  rows of a few steps in the first. No two threads add into one number, so the sums have one order.
* σ is a rational function of its clamped argument: no exponential, and the same few operations for every lane.

numba has no vector type, and LLVM does not find these loops' vectors by itself (it keeps the running sums of a run in
memory); so the first part of this file defines one, ``Lanes``, of 64 float32, which LLVM lays out in the registers
that the machine has. Threads are Python's own: a compiled loop releases the interpreter, several callers
may run at once, a forked child starts its own, and torch's number of threads is the limit.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from torch import Tensor

LANES = 64  # hidden units at a time: h and its gradient take half of AVX-512's registers
STEPS = 8  # rows of V that the forward pass holds ready
TILE = 28  # steps whose rows of V, W and their gradients the backward pass holds ready
GROUP = 64  # images that share what is held ready
AHEAD = 4  # steps computed in one go; also, when drawing, in the hope that the next bits are off

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(F32, LANES)
REORDERED = ("reassoc", "contract", "nsz")  # inf and nan keep their meaning


# ---- a vector type for numba --------------------------------------------------------------------------


class LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"Lanes({LANES})")


lanes = LanesType()


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:  # noqa: ANN401
        super().__init__(manager, kind, VECTOR)


@intrinsic
def load(typing: Any, array: Any, row: Any) -> Any:  # noqa: ANN401
    """Row of an array (·, LANES)."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        zero = ir.Constant(I64, 0)
        return builder.load(_place(context, builder, signature, args[0], args[1], zero), align=4)

    return lanes(array, types.intp), code


@intrinsic
def store(typing: Any, array: Any, row: Any, x: Any) -> Any:  # noqa: ANN401
    """Sets a row of an array (·, LANES)."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        zero = ir.Constant(I64, 0)
        builder.store(args[2], _place(context, builder, signature, args[0], args[1], zero), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), code


@intrinsic
def load_part(typing: Any, array: Any, row: Any, column: Any) -> Any:  # noqa: ANN401
    """Row of an array (·, d) from a column on; 0 beyond its end."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        place, inside = _part(context, builder, signature, args)
        mask = ir.VectorType(ir.IntType(1), LANES)
        kind = ir.FunctionType(VECTOR, [VECTOR.as_pointer(), I32, mask, VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0")
        return builder.call(function, [place, ir.Constant(I32, 4), inside, ir.Constant(VECTOR, None)])

    return lanes(array, types.intp, types.intp), code


@intrinsic
def store_part(typing: Any, array: Any, row: Any, column: Any, x: Any) -> Any:  # noqa: ANN401
    """Sets a row of an array (·, d) from a column on, up to its end."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        place, inside = _part(context, builder, signature, args)
        mask = ir.VectorType(ir.IntType(1), LANES)
        kind = ir.FunctionType(ir.VoidType(), [VECTOR, VECTOR.as_pointer(), I32, mask])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.v{LANES}f32.p0")
        builder.call(function, [args[3], place, ir.Constant(I32, 4), inside])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, lanes), code


@intrinsic
def splat(typing: Any, x: Any) -> Any:  # noqa: ANN401
    """The same number in every lane."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        return _splat(builder, args[0])

    return lanes(types.float32), code


@intrinsic
def clamp(typing: Any, x: Any, limit: Any) -> Any:  # noqa: ANN401
    """Each lane cut off at ± the limit."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        high, low = _splat(builder, args[1]), _splat(builder, builder.fneg(args[1]))
        x = builder.select(builder.fcmp_ordered("<", args[0], high), args[0], high)
        return builder.select(builder.fcmp_ordered(">", x, low), x, low)

    return lanes(lanes, types.float32), code


@intrinsic
def total(typing: Any, x: Any) -> Any:  # noqa: ANN401
    """The sum of the lanes."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        kind = ir.FunctionType(F32, [F32, VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(function, [ir.Constant(F32, 0.0), args[0]], fastmath=REORDERED)

    return types.float32(lanes), code


def _place(context: Any, builder: Any, signature: Any, array: Any, row: Any, column: Any) -> Any:  # noqa: ANN401
    """Pointer to the lanes of a C-contiguous array that start at (row, column)."""
    struct = context.make_array(signature.args[0])(context, builder, array)
    width = cgutils.unpack_tuple(builder, struct.shape)[1]
    start = builder.gep(struct.data, [builder.add(builder.mul(row, width), column)])
    return builder.bitcast(start, VECTOR.as_pointer())


def _part(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
    """Pointer as above, and which lanes lie inside the row."""
    array, row, column = args[:3]
    struct = context.make_array(signature.args[0])(context, builder, array)
    width = cgutils.unpack_tuple(builder, struct.shape)[1]
    left = _splat(builder, builder.trunc(builder.sub(width, column), I32))
    numbers = ir.Constant(ir.VectorType(I32, LANES), list(range(LANES)))
    return _place(context, builder, signature, array, row, column), builder.icmp_signed("<", numbers, left)


def _splat(builder: Any, x: Any) -> Any:  # noqa: ANN401
    undefined = ir.Constant(ir.VectorType(x.type, LANES), ir.Undefined)
    one = builder.insert_element(undefined, x, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, LANES), None))


def _arithmetic(sign: Callable[..., Any], instruction: str) -> None:
    """Makes x ``sign`` y work where one of them is lanes and the other lanes or a float32."""

    @intrinsic
    def apply(typing: Any, x: Any, y: Any) -> Any:  # noqa: ANN401
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
            x, y = (v if v.type == VECTOR else _splat(builder, v) for v in args)
            return getattr(builder, instruction)(x, y, flags=REORDERED)

        return lanes(*(kind if kind == lanes else types.float32 for kind in (x, y))), code

    @overload(sign)
    def typed(x: Any, y: Any) -> Any:  # noqa: ANN401
        return (lambda x, y: apply(x, y)) if lanes in (x, y) else None


for _sign, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_sign, _instruction)


# ---- compiling and sharing out ------------------------------------------------------------------------


def compiled(function: Callable[..., Any]) -> Any:  # noqa: ANN401
    """numba's compiler, on first call; where no folder for its cache can be written, without a cache."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(REORDERED)}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="chainrule")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def share(work: Callable[[Any], None], tasks: Sequence[Any]) -> None:
    """Runs ``work`` on each task, on at most as many threads as torch would take; the caller is one of them."""
    threads = torch.get_num_threads()
    waiting = iter(tasks)

    def some() -> None:
        for task in waiting:
            work(task)

    helpers = [_pool(threads - 1).submit(some) for _ in range(min(threads, len(tasks)) - 1)]
    some()
    for helper in helpers:
        helper.result()


def groups(images: int, largest: int = GROUP) -> list[tuple[int, int]]:
    """Cuts a batch into (first, last) of equal size, a multiple of the threads of them if it is large."""
    threads = torch.get_num_threads()
    size = min(largest, max(1, -(-images // threads)))
    return [(first, min(first + size, images)) for first in range(0, images, size)]


_local = threading.local()


def _scratch(rows: int) -> Any:  # noqa: ANN401
    """(rows, LANES) float32, aligned to cache lines, the thread's own, used again by its next call."""
    held: Tensor | None = getattr(_local, "scratch", None)
    if held is None or len(held) < rows:
        held = _local.scratch = torch.empty(rows, LANES)
    return held[:rows].numpy()


# ---- σ ------------------------------------------------------------------------------------------------

# σ(x) − 1/2 = x · P(x²) / Q(x²) on |x| ≤ 16, where σ is 1e-7 from 0 or 1; a least maximum error fit, 6.5e-8 off.
P0, P1, P2, P3 = map(np.float32, (2.4999984e-1, 8.0710416e-3, 4.5919561e-5, 4.4181359e-8))
Q1, Q2, Q3, Q4 = map(np.float32, (1.1561691e-1, 1.4852458e-3, 3.7036179e-6, 9.4683436e-10))
FLAT = np.float32(16)
HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)


@compiled
def logistic(x):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
    """σ of clamped numbers, one or many, within 3e-7."""
    y = x * x
    return HALF + x * (P0 + y * (P1 + y * (P2 + y * P3))) / (ONE + y * (Q1 + y * (Q2 + y * (Q3 + y * Q4))))


@compiled
def sigmoid(a):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
    """σ of lanes, finite for whatever is in them."""
    return logistic(clamp(a, FLAT))
