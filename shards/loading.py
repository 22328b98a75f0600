"""Reading a slice's bytes out of the checkpoint, straight to where they stay."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import DataLoss, InvalidArgument
from shardserve.shards import memory
from shardserve.shards.encoding import encode
from shardserve.shards.layout import Slice
from shardserve.shards.reads import Read, Run, Scatter, chosen_rows, plan_reads, plan_rows
from shardserve.shards.row_files import Reader, opened
from shardserve.shards.storage import coded_row_bytes
from shardserve.shards.store import array_dtype
from shardserve.shards.tables import TableSource

Array = npt.NDArray[Any]
Progress = Callable[[int], None]
#: (local row numbers int64 [n], their bytes as they are kept, uint8 [n, bytes of a row]).
Keep = Callable[[Array, Array], None]
T = TypeVar("T")

#: One thread copies from the page cache slower than a disk may read; more than a few gain nothing.
READERS = 4
#: Wanted rows that lie farther apart than this are not worth the pages between them.
SPARSE_BYTES = 64 << 10
#: Rows that are converted at a time, by each reader.
BUFFER_BYTES = 1 << 20


def load_slice(source: TableSource, piece: Slice, progress: Progress | None = None) -> Array:
    """The slice's elements, [count, columns], bfloat16 as uint16.

    Only the slice's own bytes are read, and each goes from the file to its place in the result:
    beyond that the memory needed is a few chunks of row numbers. `progress` is told of bytes as
    they come, in steps, on the calling thread. The result belongs to the caller.

    Raises NotFound or DataLoss, naming the file, when one is missing, cannot be read or ends early,
    and DataLoss when the extents do not make up the slice.
    """
    shape = (piece.rows.count, piece.columns)
    result = memory.empty(shape, array_dtype(source.table.dtype))
    done = 0
    with ExitStack() as files:
        by_path = {path: files.enter_context(opened(path)) for path in _paths(source)}
        reader = Reader(result, by_path)

        reads = (_advised(by_path, read) for read in plan_reads(source, piece))
        for nbytes in _in_parallel(reader.read, reads):
            done += nbytes
            if progress is not None:
                progress(nbytes)
    if done != result.nbytes:
        raise DataLoss(
            f"table {piece.table!r}: the checkpoint holds {done} bytes of the slice on shard "
            f"{piece.shard}, which has {result.nbytes}"
        )
    return result


def load_coded(source: TableSource, piece: Slice, progress: Progress | None = None) -> Array:
    """The slice's rows at the precision of its storage: what `CodedStore` takes.

    Raises as `load_rows` does.
    """
    row_bytes = coded_row_bytes(piece.storage.precision, piece.columns)
    result = memory.empty((piece.rows.count, row_bytes), np.uint8)

    def keep(places: Array, kept: Array) -> None:
        result[places] = kept

    load_rows(source, piece, keep, progress)
    return result


def load_rows(
    source: TableSource, piece: Slice, keep: Keep, progress: Progress | None = None
) -> None:
    """Give each of the slice's rows to `keep`, once, as they are kept, some at a time.

    `keep` is called on several threads at once. Rows are converted as they come: the memory needed
    is a few buffers of BUFFER_BYTES. Raises as `load_slice` does, and InvalidArgument, naming the
    row, for one that cannot be kept at the precision of the slice's storage.
    """
    precision = piece.storage.precision
    is_coded = piece.storage.is_coded(source.table)
    with ExitStack() as files:
        by_path = {path: files.enter_context(opened(path)) for path in _paths(source)}

        def convert(rows: Array, places: Array, reads: Sequence[Read]) -> int:
            buffer = np.empty((len(rows), piece.columns), array_dtype(source.table.dtype))
            reader = Reader(buffer, by_path)
            done = 0
            for read in reads:
                done += reader.read(read)
            if done != buffer.nbytes:
                raise DataLoss(
                    f"table {piece.table!r}: the checkpoint does not hold all of rows "
                    f"{rows[0]} to {rows[-1]}"
                )
            if not is_coded:
                keep(places, buffer.view(np.uint8))
                return buffer.nbytes
            coded, fits = encode(precision, buffer)
            if not fits.all():
                raise InvalidArgument(
                    f"table {piece.table!r}: row {rows[np.argmin(fits)]} has elements that "
                    f"precision '{precision}' does not hold"
                )
            keep(places, coded)
            return coded.nbytes

        parts = (
            (rows, places, [_advised(by_path, read) for read in plan_rows(source, piece, rows)])
            for rows, places in _some_rows(source, piece)
        )
        for nbytes in _in_parallel(lambda part: convert(*part), parts):
            if progress is not None:
                progress(nbytes)


def _some_rows(source: TableSource, piece: Slice) -> Iterator[tuple[Array, Array]]:
    """The slice's rows and their local numbers, as many at a time as a buffer holds."""
    step = max(1, BUFFER_BYTES // max(1, source.table.itemsize * piece.columns))
    for rows, places in chosen_rows(piece.rows, 0, source.table.rows):
        for start in range(0, len(rows), step):
            yield rows[start : start + step], places[start : start + step]


def _paths(source: TableSource) -> list[str]:
    return sorted({extent.path for extent in source.extents})


def _in_parallel(read: Callable[[T], int], reads: Iterable[T]) -> Iterator[int]:
    """What `read` returns, in order, with no more than twice READERS reads made at a time."""
    waiting: deque[Future[int]] = deque()
    with ThreadPoolExecutor(READERS, "slice-reader") as threads:
        for one in reads:
            waiting.append(threads.submit(read, one))
            if len(waiting) >= 2 * READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _advised(files: Mapping[str, int], read: Read) -> Read:
    """The read; the system is told of it, and so begins with a run before its turn has come."""
    match read:
        case Run(path, offset, nbytes):
            os.posix_fadvise(files[path], offset, nbytes, os.POSIX_FADV_WILLNEED)
        case Scatter(path):
            os.posix_fadvise(files[path], 0, 0, _advice(read))
    return read


def _advice(scatter: Scatter) -> int:
    """Whether the pages between the wanted rows should be read ahead as well."""
    return os.POSIX_FADV_RANDOM if scatter.apart > SPARSE_BYTES else os.POSIX_FADV_SEQUENTIAL
