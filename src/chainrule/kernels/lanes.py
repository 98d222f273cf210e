# ruff: noqa: ANN401
"""A vector type for numba: ``Lanes``, 32 or 64 float32, which LLVM lays out in the registers that the machine has.

numba has no vector type, and LLVM does not find the vectors of NADE's loops by itself: it keeps the running sums of
a run in memory, at three times the cost.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model

# Hidden units at a time: NADE's loops hold two such vectors, and of 64 they would fill all sixteen registers of AVX2.
FEATURES = cpu_target.target_context.codegen().magic_tuple()[2]
LANES = 64 if "+avx512f" in FEATURES else 32

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(F32, LANES)
REORDERED = ("reassoc", "contract", "nsz")  # inf and nan keep their meaning

primitive: Any = intrinsic  # its annotations are those of what it is given, not of what it makes
tools: Any = cgutils


class LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"Lanes({LANES})")


lanes = LanesType()


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)  # type: ignore[no-untyped-call]


@primitive
def load(typing: Any, array: Any, row: Any) -> Any:
    """Row of an array (·, LANES)."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_row(context, builder, signature, args), align=4)

    return lanes(array, types.intp), code


@primitive
def store(typing: Any, array: Any, row: Any, x: Any) -> Any:
    """Sets a row of an array (·, LANES)."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _row(context, builder, signature, args), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), code


@primitive
def load_part(typing: Any, array: Any, row: Any, column: Any) -> Any:
    """Row of an array (·, d) from a column on, 0 beyond its end."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place, inside = _part(context, builder, signature, args)
        return _call(builder, "masked.load", VECTOR, place, ir.Constant(I32, 4), inside, ir.Constant(VECTOR, None))

    return lanes(array, types.intp, types.intp), code


@primitive
def store_part(typing: Any, array: Any, row: Any, column: Any, x: Any) -> Any:
    """Sets a row of an array (·, d) from a column on, up to its end."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place, inside = _part(context, builder, signature, args)
        _call(builder, "masked.store", ir.VoidType(), args[3], place, ir.Constant(I32, 4), inside)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, lanes), code


@primitive
def splat(typing: Any, x: Any) -> Any:
    """The same number in every lane."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return lanes(types.float32), code


@primitive
def clamp(typing: Any, x: Any, limit: Any) -> Any:
    """Each lane, but no further from 0 than the limit; NaN stays NaN."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # No comparison with NaN holds, so each chooses the limit where it holds, and the lane where it does not.
        high, low = _splat(builder, args[1]), _splat(builder, builder.fneg(args[1]))
        x = builder.select(builder.fcmp_ordered("<", high, args[0]), high, args[0])
        return builder.select(builder.fcmp_ordered(">", low, x), low, x)

    return lanes(lanes, types.float32), code


@primitive
def total(typing: Any, x: Any) -> Any:
    """The sum of the lanes."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "vector.reduce.fadd", F32, ir.Constant(F32, 0.0), args[0], fastmath=REORDERED)

    return types.float32(lanes), code


@primitive
def take(typing: Any, counter: Any) -> Any:
    """The next number of a counter (1,) int64 that threads share."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(I64, 1), "monotonic")

    return types.int64(counter), code


def _row(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Pointer to a row of an array (·, LANES)."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    start = builder.gep(array.data, [builder.mul(args[1], ir.Constant(I64, LANES))])
    return builder.bitcast(start, VECTOR.as_pointer())


def _part(context: Any, builder: Any, signature: Any, args: Any) -> tuple[Any, Any]:
    """Pointer into an array (·, d), at a row and a column, and which lanes lie inside that row."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    width = tools.unpack_tuple(builder, array.shape)[1]
    start = builder.gep(array.data, [builder.add(builder.mul(args[1], width), args[2])])
    left = _splat(builder, builder.trunc(builder.sub(width, args[2]), I32))
    numbers = ir.Constant(ir.VectorType(I32, LANES), list(range(LANES)))
    return builder.bitcast(start, VECTOR.as_pointer()), builder.icmp_signed("<", numbers, left)


def _splat(builder: Any, x: Any) -> Any:
    empty = ir.Constant(ir.VectorType(x.type, LANES), ir.Undefined)
    first = builder.insert_element(empty, x, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(I32, LANES), None))


def _call(builder: Any, name: str, result: Any, *args: Any, fastmath: tuple[str, ...] = ()) -> Any:
    """One of LLVM's own functions on vectors; its full name ends with its types."""
    name = f"llvm.{name}.v{LANES}f32" + ".p0" * name.startswith("masked")
    kind = ir.FunctionType(result, [x.type for x in args])
    return builder.call(tools.get_or_insert_function(builder.module, kind, name), args, fastmath=fastmath)


def _arithmetic(sign: Callable[..., Any], instruction: str) -> None:
    """Defines ``x sign y`` for lanes and lanes, and for lanes and a float32."""

    @primitive
    def apply(typing: Any, x: Any, y: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, y = (v if v.type == VECTOR else _splat(builder, v) for v in args)
            return getattr(builder, instruction)(x, y, flags=REORDERED)

        return lanes(*(kind if kind == lanes else types.float32 for kind in (x, y))), code

    @overload(sign)
    def typed(x: Any, y: Any) -> Any:
        def called(x: Any, y: Any) -> Any:
            return apply(x, y)

        return called if lanes in (x, y) else None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")
