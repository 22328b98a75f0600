"""The kernels, written for numba, and their compilation to one object file.

A shard process imports neither this nor numba: it loads the object file (see `native`). Every
kernel takes plain numbers: addresses, counts and strides in bytes, as an ordinary C function does.

Row numbers are int64 where `wide`, else int32. A kernel looks at each before it touches the row,
asks for the row that comes `ahead` places later, and returns ALL_FOUND or the place of the first
row number outside [0, count); a pool returns BAD_OFFSETS for offsets that do not rise from 0 to n.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core import types

from shardserve.batching.errors import Internal
from shardserve.shards.asking_code import CACHE_LINE, IN_STEPS, WHOLE, row_number
from shardserve.shards.distinct_code import distinct
from shardserve.shards.lanes import Lanes, add_scaled, inlined, loader, store, zeros
from shardserve.shards.native import LIBC
from shardserve.shards.row_forms import FORMS, RowForm

ALL_FOUND = -1
BAD_OFFSETS = -2
#: A row up to this long is asked for in two steps. Measured, ns a row in 1 GiB, asked for at once
#: and in steps: 128 bytes 24.2 and 21.5, 68 bytes 26.5 and 23.3; 256 bytes 29.9 and 30.1.
SHORT_ROW = 128
#: Columns for which a row's sum stays in registers: what is usual, whole or cut by columns.
FIXED_WIDTHS = (8, 16, 32, 64, 128)
#: The same for rows that are kept in another form than they are asked for in.
CODED_WIDTHS = (16, 32, 64, 128)

_load_int64 = loader(types.int64)
_load_byte = loader(types.uint8)
_pread = types.ExternalFunction(
    "pread", types.int64(types.int32, types.intp, types.int64, types.int64)
)
_posix_fadvise: Any = types.ExternalFunction(
    "posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32)
)
_WILL_NEED = os.POSIX_FADV_WILLNEED


_Block = Lanes(types.uint8, CACHE_LINE)
_Small = Lanes(types.uint8, 16)
_load_block, _load_small = loader(_Block), loader(_Small)


def _copy(source, target, length):  # type: ignore[no-untyped-def]
    """In blocks, the last of which overlaps the one before: no loop over what is left."""
    if length >= CACHE_LINE:
        for byte in range(0, length - CACHE_LINE, CACHE_LINE):
            store(target + byte, _load_block(source + byte))
        store(target + length - CACHE_LINE, _load_block(source + length - CACHE_LINE))
    elif length >= 16:
        for byte in range(0, length - 16, 16):
            store(target + byte, _load_small(source + byte))
        store(target + length - 16, _load_small(source + length - 16))
    else:
        for byte in range(length):
            store(target + byte, _load_byte(source + byte))


copy = inlined(_copy)


begin, go_on = WHOLE.begin, WHOLE.go_on


def gather(table, count, row_bytes, rows, wide, n, ahead, out):  # type: ignore[no-untyped-def]
    """Copy n rows to out, one behind the other."""
    begin(table, row_bytes, rows, wide, n, ahead)
    for place in range(n):
        go_on(table, row_bytes, rows, wide, n, ahead, place)
        row = row_number(rows, wide, place)
        if row < 0 or row >= count:
            return place
        copy(table + row * row_bytes, out + place * row_bytes, row_bytes)
    return ALL_FOUND


def gather_coded(form: RowForm) -> Callable[..., Any]:
    """As `gather`, for rows in some form; what it writes are float32."""
    read_many, read_one = form.readers_at(16)
    begin, go_on = WHOLE.begin, WHOLE.go_on

    def gather(  # type: ignore[no-untyped-def]
        table, count, row_bytes, columns, rows, wide, n, ahead, out
    ):
        even = columns - columns % 16
        begin(table, row_bytes, rows, wide, n, ahead)
        for place in range(n):
            go_on(table, row_bytes, rows, wide, n, ahead, place)
            row = row_number(rows, wide, place)
            if row < 0 or row >= count:
                return place
            source, target = table + row * row_bytes, out + place * columns * 4
            for column in range(0, even, 16):
                store(target + column * 4, read_many(source, column))
            for column in range(even, columns):
                store(target + column * 4, read_one(source, column))
        return ALL_FOUND

    return gather


def _spans(offsets, bags, n):  # type: ignore[no-untyped-def]
    return _load_int64(offsets) == 0 and _load_int64(offsets + bags * 8) == n


spans = inlined(_spans)


def pool_fixed(element: Any, width: int) -> Callable[..., Any]:
    """Sum the rows of each bag in registers, for rows of `width` columns.

    `offsets` has bags + 1 int64 entries. Without `weights` (address 0) each row counts once.
    """
    return _pool_in_registers(
        element, width, width * element.bitwidth // 8, loader(Lanes(element, width))
    )


def pool_coded(form: RowForm, width: int) -> Callable[..., Any]:
    """As `pool_fixed`, for rows in some form; the sums are float32."""
    return _pool_in_registers(types.float32, width, form.row_bytes(width), form.reader(width))


def _pool_in_registers(
    element: Any, width: int, row_bytes: int, load_row: Any
) -> Callable[..., Any]:
    """`load_row` gives the elements of the row at an address."""
    none, load_weight = zeros(Lanes(element, width)), loader(element)
    itemsize = element.bitwidth // 8
    sum_bytes = width * itemsize
    asking = IN_STEPS if row_bytes <= SHORT_ROW else WHOLE
    begin, go_on = asking.begin, asking.go_on

    def pool(  # type: ignore[no-untyped-def]
        table, count, columns, rows, wide, n, offsets, bags, weights, ahead, out
    ):
        if not spans(offsets, bags, n):
            return BAD_OFFSETS
        begin(table, row_bytes, rows, wide, n, ahead)
        for bag in range(bags):
            first, stop = _load_int64(offsets + bag * 8), _load_int64(offsets + bag * 8 + 8)
            if stop < first or stop > n:
                return BAD_OFFSETS
            total = none()
            for place in range(first, stop):
                go_on(table, row_bytes, rows, wide, n, ahead, place)
                row = row_number(rows, wide, place)
                if row < 0 or row >= count:
                    return place
                weight = load_weight(weights + place * itemsize) if weights else element(1)
                total = add_scaled(total, load_row(table + row * row_bytes), weight)
            store(out + bag * sum_bytes, total)
        return ALL_FOUND

    return pool


def pool_any(element: Any) -> Callable[..., Any]:
    """As `pool_fixed`, for any number of columns: the sum stays in `out`, which is cached."""
    lanes = Lanes(element, 16)
    lone = Lanes(element, 1)
    load_lanes, load_lone, load_weight = loader(lanes), loader(lone), loader(element)
    itemsize = element.bitwidth // 8
    step = 16 * itemsize
    begin, go_on = WHOLE.begin, WHOLE.go_on

    def add_row(row, weight, out, row_bytes):  # type: ignore[no-untyped-def]
        even = row_bytes - row_bytes % step
        for byte in range(0, even, step):
            here = out + byte
            store(here, add_scaled(load_lanes(here), load_lanes(row + byte), weight))
        for byte in range(even, row_bytes, itemsize):
            here = out + byte
            store(here, add_scaled(load_lone(here), load_lone(row + byte), weight))

    add = inlined(add_row)

    def pool(  # type: ignore[no-untyped-def]
        table, count, columns, rows, wide, n, offsets, bags, weights, ahead, out
    ):
        row_bytes = columns * itemsize
        if not spans(offsets, bags, n):
            return BAD_OFFSETS
        begin(table, row_bytes, rows, wide, n, ahead)
        for bag in range(bags):
            first, stop = _load_int64(offsets + bag * 8), _load_int64(offsets + bag * 8 + 8)
            if stop < first or stop > n:
                return BAD_OFFSETS
            sums = out + bag * row_bytes
            for byte in range(0, row_bytes, itemsize):
                store(sums + byte, element(0))
            for place in range(first, stop):
                go_on(table, row_bytes, rows, wide, n, ahead, place)
                row = row_number(rows, wide, place)
                if row < 0 or row >= count:
                    return place
                weight = load_weight(weights + place * itemsize) if weights else element(1)
                add(table + row * row_bytes, weight, sums, row_bytes)
        return ALL_FOUND

    return pool


def _will_need(file, offset, length):  # type: ignore[no-untyped-def]
    _posix_fadvise(types.int32(file), offset, length, types.int32(_WILL_NEED))


will_need = inlined(_will_need)


def read_rows(  # type: ignore[no-untyped-def]
    file, start, row_bytes, length, rows, places, n, target, target_row_bytes, ahead
):
    """Read `length` bytes of each row, to its own place; return how many rows came whole.

    Row r's bytes are at `start + r * row_bytes` of the file; they go to place p of `target`. The
    system is told `ahead` rows before that a row will be wanted, so that a disk has as many to
    fetch at a time; not at all where that is 0.
    """
    for i in range(min(n, ahead)):
        will_need(file, start + _load_int64(rows + i * 8) * row_bytes, length)
    for i in range(n):
        if ahead and i + ahead < n:
            will_need(file, start + _load_int64(rows + (i + ahead) * 8) * row_bytes, length)
        offset = start + _load_int64(rows + i * 8) * row_bytes
        to = target + _load_int64(places + i * 8) * target_row_bytes
        if _pread(types.int32(file), to, length, offset) != length:
            return i
    return n


def read_blocks(  # type: ignore[no-untyped-def]
    file, start, row_bytes, length, rows, places, n, target, target_row_bytes, buffer, size, ahead
):
    """As `read_rows`, of rows that rise: what lies between them is read as well, and left out.

    `size` bytes at most are read at a time, at least `length`, to `buffer`; a row that does not
    rise begins the next ones. The system is told `ahead` bytes before that they will be wanted.
    """
    i = 0
    while i < n:
        first = _load_int64(rows + i * 8)
        last = first
        stop = i + 1
        while stop < n:
            row = _load_int64(rows + stop * 8)
            if row <= last or (row - first) * row_bytes + length > size:
                break
            last = row
            stop += 1
        offset = start + first * row_bytes
        wanted = (last - first) * row_bytes + length
        will_need(file, offset + ahead, wanted)
        if _pread(types.int32(file), buffer, wanted, offset) != wanted:
            return i
        for j in range(i, stop):
            source = buffer + (_load_int64(rows + j * 8) - first) * row_bytes
            copy(source, target + _load_int64(places + j * 8) * target_row_bytes, length)
        i = stop
    return n


def kernels(group: str) -> dict[str, tuple[Callable[..., Any], int]]:
    """Each kernel's name, its code, and how many numbers it takes. See `native.library`."""
    return _coded_kernels() if group == "coded" else _row_kernels()


def _row_kernels() -> dict[str, tuple[Callable[..., Any], int]]:
    code: dict[str, tuple[Callable[..., Any], int]] = {
        "gather": (gather, 8),
        "read_rows": (read_rows, 10),
        "distinct": (distinct, 10),
        "read_blocks": (read_blocks, 12),
    }
    for name, element in (("float32", types.float32), ("float64", types.float64)):
        code[f"pool_{name}"] = (pool_any(element), 11)
    for width in FIXED_WIDTHS:
        code[f"pool_float32_{width}"] = (pool_fixed(types.float32, width), 11)
    return code


def _coded_kernels() -> dict[str, tuple[Callable[..., Any], int]]:
    code: dict[str, tuple[Callable[..., Any], int]] = {}
    for form in FORMS:
        code[f"gather_{form.name}"] = (gather_coded(form), 9)
        for width in CODED_WIDTHS:
            code[f"pool_{form.name}_{width}"] = (pool_coded(form, width), 11)
    return code


def compile_object(target: Any, group: str) -> tuple[dict[str, tuple[str, int]], bytes]:
    """Each kernel's symbol and how many numbers it takes, and object code for an LLVM target."""
    functions = {}
    module = llvm.parse_assembly("")
    for name, (function, numbers) in kernels(group).items():
        signature = types.int64(*[types.int64] * numbers)
        compiled = numba.cfunc(signature, error_model="numpy")(function)
        functions[name] = (compiled.native_name, numbers)
        module.link_in(llvm.parse_assembly(compiled.inspect_llvm()))
    _drop_error_paths(module, target)
    _refuse_calls(module)
    return functions, target.emit_object(module)


def _drop_error_paths(module: Any, target: Any) -> None:
    """See that no kernel raises, and drop the code with which its wrapper would say so."""
    passes = llvm.create_new_module_pass_manager()
    passes.add_ipsccp_pass()
    passes.add_simplify_cfg_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options()))


def _refuse_calls(module: Any) -> None:
    """Raise Internal for a kernel that would need Python or numba, as one that may raise does."""
    for function in module.functions:
        known = function.name in LIBC or function.name.startswith("llvm.")
        if function.is_declaration and not known:
            raise Internal(f"a kernel calls {function.name}")
