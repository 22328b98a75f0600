"""How the rows of a table are kept on its shards: in which tier, and at which precision. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.tables import Table

#: Bytes of a row's scale, a float32, where there is one.
SCALE_BYTES = 4


class Tier(enum.StrEnum):
    """Where rows lie. The value is the word used in layout files and flags."""

    MEMORY = "memory"
    MAPPED = "mapped"
    GPU = "gpu"


class Precision(enum.StrEnum):
    """What an element is kept as. The value is the word used in layout files and flags."""

    AS_SAVED = "as_saved"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True)
class Storage:
    """A table's tier and precision. Lookups answer in the table's own dtype whichever they are."""

    tier: Tier = Tier.MEMORY
    precision: Precision = Precision.AS_SAVED

    def is_coded(self, table: Table) -> bool:
        """Whether rows are kept as something else than the checkpoint has."""
        return self.precision not in (Precision.AS_SAVED, table.dtype)

    def row_bytes(self, table: Table, columns: int) -> int:
        """Bytes that `columns` elements of a row of the table take where they are kept."""
        if not self.is_coded(table):
            return columns * table.itemsize
        return coded_row_bytes(self.precision, columns)


PLAIN = Storage()


def coded_row_bytes(precision: Precision, columns: int) -> int:
    """Bytes of a row of `columns` elements at a precision, its scale included."""
    match precision:
        case Precision.FLOAT16 | Precision.BFLOAT16:
            return 2 * columns
        case Precision.INT8:
            return SCALE_BYTES + columns
        case Precision.INT4:
            return SCALE_BYTES + (columns + 1) // 2
    raise ValueError(f"{precision} is no precision to keep rows at")


def check_storage(storage: Storage, table: Table) -> None:
    """Raise InvalidArgument, naming the table and the precision, for what cannot be kept so."""
    if not storage.is_coded(table):
        return
    where = f"layout: table {table.name!r}: precision '{storage.precision}'"
    if table.dtype != "float32" or storage.precision is Precision.FLOAT32:
        raise InvalidArgument(
            f"{where} cannot be had of a table of {table.dtype}; only float32 is converted"
        )
    if storage.tier is Tier.MAPPED:
        raise InvalidArgument(
            f"{where} needs tier 'memory' or 'gpu'; tier 'mapped' keeps rows as saved"
        )
