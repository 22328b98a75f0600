"""The file of row counts: YAML that names, for each table, its counts or the array that has them.

`docs/layouts.md` describes the form. Arrays are mapped, not read: those of big tables are big.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from shardserve.batching.errors import InvalidArgument, NotFound
from shardserve.shards.forms import Strict, read_form
from shardserve.shards.row_counts import RowCounts

Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class RowCountsFile(Strict):
    """The whole file: for each table a .npy file beside it, or the rows that are read by number."""

    version: Literal[1] = 1
    tables: dict[str, str | dict[Count, Count]]


def read_row_counts(path: Path) -> dict[str, RowCounts]:
    """The counts of each table that the file names; not yet checked against the tables.

    Raises NotFound or InvalidArgument naming the file that is missing or wrong.
    """
    file = read_form(RowCountsFile, path)
    return {
        name: _mapped(path.parent / entry) if isinstance(entry, str) else _listed(entry)
        for name, entry in file.tables.items()
    }


def _listed(entry: dict[int, int]) -> RowCounts:
    rows = np.array(sorted(entry), np.int64)
    return RowCounts(np.array([entry[row] for row in rows.tolist()], np.int64), rows)


def _mapped(path: Path) -> RowCounts:
    try:
        counts = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise NotFound(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, EOFError) as error:
        raise InvalidArgument(f"{path}: not an array in numpy's format: {error}") from None
    if not isinstance(counts, np.ndarray):
        raise InvalidArgument(f"{path}: not one array in numpy's format")
    return RowCounts(counts)
