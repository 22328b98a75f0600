"""The forms that rows of float32 can be kept in, and how kernels read them.

Needed where kernels are compiled, never where they run. `encoding.py` writes what is read here: a
row's scale first, a float32, where its form has one, then the elements, at 4, 8 or 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numba.core import types

from shardserve.shards.lanes import inlined, loader, scaled, unpacker
from shardserve.shards.storage import SCALE_BYTES, Precision, coded_row_bytes

_load_scale = loader(types.float32)
_load_byte = loader(types.uint8)


@dataclass(frozen=True)
class RowForm:
    """One precision: elements of `bits`, times the row's scale if it `has_scale`."""

    name: str
    bits: int
    has_scale: bool

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row."""
        return coded_row_bytes(Precision(self.name), columns)

    def reader(self, width: int) -> Any:
        """A numba function (row's address) -> its elements, as `Lanes` of float32."""
        read = self._lanes_at(width)

        def read_all(row):  # type: ignore[no-untyped-def]
            return read(row, 0)

        return inlined(read_all)

    def readers_at(self, width: int) -> tuple[Any, Any]:
        """Functions (row's address, column) -> `width` elements from there on, or just one."""
        return self._lanes_at(width), _nibble_at if self.bits == 4 else self._lanes_at(1)

    def _lanes_at(self, width: int) -> Any:
        unpack = unpacker(self.name, width)
        bits = self.bits

        def read(row, column):  # type: ignore[no-untyped-def]
            return unpack(row + (column * bits >> 3))

        def read_scaled(row, column):  # type: ignore[no-untyped-def]
            codes = unpack(row + SCALE_BYTES + (column * bits >> 3))
            return scaled(codes, _load_scale(row))

        return inlined(read_scaled if self.has_scale else read)


def _nibble(row, column):  # type: ignore[no-untyped-def]
    byte = types.int64(_load_byte(row + SCALE_BYTES + (column >> 1)))
    code = ((byte >> ((column & 1) << 2) & 15) ^ 8) - 8
    return types.float32(code) * _load_scale(row)


_nibble_at = inlined(_nibble)

FORMS = (
    RowForm("float16", 16, has_scale=False),
    RowForm("bfloat16", 16, has_scale=False),
    RowForm("int8", 8, has_scale=True),
    RowForm("int4", 4, has_scale=True),
)
