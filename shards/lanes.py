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
        vector = args[0].type
        undefined = ir.Constant(vector, ir.Undefined)
        first = ir.Constant(ir.VectorType(_INT32, vector.count), None)
        lone = builder.insert_element(undefined, args[2], _INT32(0))
        weights = builder.shuffle_vector(lone, undefined, first)
        return builder.fadd(args[0], builder.fmul(args[1], weights))

    return total(total, row, total.element), generate


#: (total, row, weight) -> total + row * weight, lane by lane, each operation rounded.
add_scaled = intrinsic(_add_scaled)


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
