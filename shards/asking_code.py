"""How kernels find rows, and ask for them before their turn. For numba; see `kernel_code`.

Short rows that are summed are asked for in two steps: the first line `ahead` places before the
row's turn, the others half as many before, when its page has been looked up. Asked for together,
each line may have the page looked up, which takes longer than fetching them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numba.core import types

from shardserve.shards.lanes import inlined, loader, prefetch

CACHE_LINE = 64
#: A longer row is a stream to the processor's own prefetcher: only its beginning is asked for.
LONG_ROW = 1024
BEGINNING = 256

_load_int32 = loader(types.int32)
_load_int64 = loader(types.int64)


def _row_number(rows, wide, place):  # type: ignore[no-untyped-def]
    if wide:
        return _load_int64(rows + place * 8)
    return types.int64(_load_int32(rows + place * 4))


row_number = inlined(_row_number)


def _ask(row, row_bytes):  # type: ignore[no-untyped-def]
    for byte in range(0, row_bytes if row_bytes <= LONG_ROW else BEGINNING, CACHE_LINE):
        prefetch(row + byte)
    if row_bytes % CACHE_LINE and row_bytes & (row_bytes - 1):
        prefetch(row + row_bytes - 1)


ask = inlined(_ask)


def _ask_others(row, row_bytes):  # type: ignore[no-untyped-def]
    for byte in range(CACHE_LINE, row_bytes, CACHE_LINE):
        prefetch(row + byte)
    if row_bytes % CACHE_LINE and row_bytes & (row_bytes - 1):
        prefetch(row + row_bytes - 1)


ask_others = inlined(_ask_others)


@dataclass(frozen=True)
class Asking:
    """How rows are asked for before their turn: numba functions.

    `begin` (table, row bytes, rows, wide, n, ahead) asks for the first rows, `go_on` (the same, and
    a place) for what the row at that place is `ahead` of.
    """

    begin: Any
    go_on: Any


def _begin_whole(table, row_bytes, rows, wide, n, ahead):  # type: ignore[no-untyped-def]
    for place in range(min(n, ahead)):
        ask(table + row_number(rows, wide, place) * row_bytes, row_bytes)


def _go_on_whole(table, row_bytes, rows, wide, n, ahead, place):  # type: ignore[no-untyped-def]
    if place + ahead < n:
        ask(table + row_number(rows, wide, place + ahead) * row_bytes, row_bytes)


def _begin_in_steps(table, row_bytes, rows, wide, n, ahead):  # type: ignore[no-untyped-def]
    for place in range(min(n, ahead)):
        prefetch(table + row_number(rows, wide, place) * row_bytes)
    for place in range(min(n, ahead >> 1)):
        ask_others(table + row_number(rows, wide, place) * row_bytes, row_bytes)


def _go_on_in_steps(table, row_bytes, rows, wide, n, ahead, place):  # type: ignore[no-untyped-def]
    if place + ahead < n:
        prefetch(table + row_number(rows, wide, place + ahead) * row_bytes)
    if place + (ahead >> 1) < n:
        ask_others(table + row_number(rows, wide, place + (ahead >> 1)) * row_bytes, row_bytes)


WHOLE = Asking(inlined(_begin_whole), inlined(_go_on_whole))
IN_STEPS = Asking(inlined(_begin_in_steps), inlined(_go_on_in_steps))
