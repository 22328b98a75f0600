"""Words that numba has not: SIMD registers, raw addresses and prefetches, for `kernel_code`.

Needed where kernels are compiled, never where they run. All addresses are integers in bytes; loads
and stores assume no alignment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

_LLVM = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.uint8: ir.IntType(8),
}
_BYTE_POINTER = ir.IntType(8).as_pointer()
_INT32 = ir.IntType(32)

#: llvm.prefetch's locality: into the second-level cache, which takes more lines at a time than the
#: first. Measured over random rows of 256 bytes in 1 GiB: 8.8 GB/s, into the first level 6.2.
_SECOND_LEVEL = 2


class Lanes(types.Type):
    """numba type of a vector of `width` elements; LLVM spreads a wide one over registers."""

    def __init__(self, element: Any, width: int) -> None:
        self.element = element
        self.width = width
        super().__init__(f"Lanes({element}, {width})")


def _lanes_model(manager: Any, lanes: Any) -> Any:
    return models.PrimitiveModel(manager, lanes, ir.VectorType(_LLVM[lanes.element], lanes.width))


register_model(Lanes)(_lanes_model)


def zeros(lanes: Lanes) -> Any:
    """A numba function () -> lanes of zeros."""

    def typed(_typing: Any) -> Any:
        def generate(context: Any, _builder: Any, _signature: Any, _args: Any) -> Any:
            return ir.Constant(context.get_value_type(lanes), None)

        return lanes(), generate

    return intrinsic(typed)


def loader(kind: Any) -> Any:
    """A numba function (address) -> the scalar or `Lanes` of type `kind` that lies there."""

    def typed(_typing: Any, _address: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], context.get_value_type(kind).as_pointer())
            return builder.load(pointer, align=1)

        return kind(types.intp), generate

    return intrinsic(typed)


def _store(_typing: Any, _address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, value), generate


#: (address, scalar or lanes): write it there.
store = intrinsic(_store)


def _add_scaled(_typing: Any, total: Any, row: Any, _weight: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        weights = _spread(builder, args[2], args[0].type.count)
        return builder.fadd(args[0], builder.fmul(args[1], weights))

    return total(total, row, total.element), generate


#: (total, row, weight) -> total + row * weight, lane by lane, each operation rounded.
add_scaled = intrinsic(_add_scaled)


def _scaled(_typing: Any, row: Any, _factor: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fmul(args[0], _spread(builder, args[1], args[0].type.count))

    return row(row, row.element), generate


#: (row, factor) -> row * factor, lane by lane.
scaled = intrinsic(_scaled)


def _spread(builder: Any, value: Any, width: int) -> Any:
    """A vector that has a scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, width), ir.Undefined)
    lone = builder.insert_element(undefined, value, _INT32(0))
    return builder.shuffle_vector(lone, undefined, ir.Constant(ir.VectorType(_INT32, width), None))


def unpacker(form: str, width: int) -> Any:
    """A numba function (address) -> `Lanes` of `width` float32, of what lies there in some form.

    Forms are "float16", "bfloat16", "int8" and "int4", for which `width` must be even: two elements
    a byte, the first in its low half.
    """
    lanes = Lanes(types.float32, width)
    unpack = _UNPACK[form]

    def typed(_typing: Any, _address: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return unpack(builder, args[0], width)

        return lanes(types.intp), generate

    return intrinsic(typed)


def _vector_at(builder: Any, address: Any, element: Any, width: int) -> Any:
    vector = ir.VectorType(element, width)
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)


def _all(element: Any, value: int, width: int) -> Any:
    return ir.Constant(ir.VectorType(element, width), [value] * width)


def _floats(width: int) -> Any:
    return ir.VectorType(ir.FloatType(), width)


def _unpack_float16(builder: Any, address: Any, width: int) -> Any:
    return builder.fpext(_vector_at(builder, address, ir.HalfType(), width), _floats(width))


def _unpack_bfloat16(builder: Any, address: Any, width: int) -> Any:
    """A bfloat16 is the upper half of a float32."""
    bits = _vector_at(builder, address, ir.IntType(16), width)
    wide = builder.zext(bits, ir.VectorType(_INT32, width))
    return builder.bitcast(builder.shl(wide, _all(_INT32, 16, width)), _floats(width))


def _unpack_int8(builder: Any, address: Any, width: int) -> Any:
    return builder.sitofp(_vector_at(builder, address, ir.IntType(8), width), _floats(width))


def _unpack_int4(builder: Any, address: Any, width: int) -> Any:
    pairs = width // 2
    both = _vector_at(builder, address, ir.IntType(8), pairs)
    four = _all(ir.IntType(8), 4, pairs)
    low, high = builder.ashr(builder.shl(both, four), four), builder.ashr(both, four)
    order = [place // 2 + pairs * (place % 2) for place in range(width)]
    mask = ir.Constant(ir.VectorType(_INT32, width), order)
    return builder.sitofp(builder.shuffle_vector(low, high, mask), _floats(width))


_UNPACK = {
    "float16": _unpack_float16,
    "bfloat16": _unpack_bfloat16,
    "int8": _unpack_int8,
    "int4": _unpack_int4,
}


def _prefetch(_typing: Any, _address: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        shape = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, _INT32, _INT32, _INT32])
        function = _declared(builder.module, shape, "llvm.prefetch.p0")
        pointer = builder.inttoptr(args[0], _BYTE_POINTER)
        builder.call(function, [pointer, _INT32(0), _INT32(_SECOND_LEVEL), _INT32(1)])
        return context.get_dummy_value()

    return types.void(types.intp), generate


#: (address): ask for its cache line. Never faults, whatever the address.
prefetch = intrinsic(_prefetch)


def _declared(module: Any, shape: Any, name: str) -> Any:
    return module.globals.get(name) or ir.Function(module, shape, name)


def inlined(function: Callable[..., Any]) -> Any:
    """A numba function that is compiled into each of its callers."""
    from numba import njit  # noqa: PLC0415 (keeps the decorator's type out of strict checking)

    return njit(function, inline="always", error_model="numpy")
