"""Reading a slice's bytes out of the checkpoint, straight to where they stay."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import DataLoss, NotFound
from shardserve.shards import memory
from shardserve.shards.layout import Slice
from shardserve.shards.native import library
from shardserve.shards.reads import Read, Run, Scatter, plan_reads
from shardserve.shards.store import array_dtype
from shardserve.shards.tables import TableSource

Array = npt.NDArray[Any]
Progress = Callable[[int], None]

#: One thread copies from the page cache slower than a disk may read; more than a few gain nothing.
READERS = 4
#: Wanted rows that lie farther apart than this are not worth the pages between them.
SPARSE_BYTES = 64 << 10


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
        reader = _Reader(
            result, {path: files.enter_context(_opened(path)) for path in _paths(source)}
        )
        for nbytes in _in_parallel(reader.read, plan_reads(source, piece)):
            done += nbytes
            if progress is not None:
                progress(nbytes)
    if done != result.nbytes:
        raise DataLoss(
            f"table {piece.table!r}: the checkpoint holds {done} bytes of the slice on shard "
            f"{piece.shard}, which has {result.nbytes}"
        )
    return result


def _paths(source: TableSource) -> list[str]:
    return sorted({extent.path for extent in source.extents})


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such data file") from error
    except OSError as error:
        raise DataLoss(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        yield file
    finally:
        os.close(file)


def _in_parallel(read: Callable[[Read], int], reads: Iterable[Read]) -> Iterator[int]:
    """What `read` returns, in order, with no more than twice READERS reads made at a time."""
    waiting: deque[Future[int]] = deque()
    with ThreadPoolExecutor(READERS, "slice-reader") as threads:
        for one in reads:
            waiting.append(threads.submit(read, one))
            if len(waiting) >= 2 * READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Reader:
    """Performs reads into one slice. Safe for many threads at once: no two reads share a byte."""

    def __init__(self, result: Array, files: dict[str, int]) -> None:
        self._bytes = result.reshape(-1).view(np.uint8)
        self._address = self._bytes.ctypes.data
        self._files = files
        self._read_rows = library().kernels["read_rows"]

    def read(self, read: Read) -> int:
        """Perform one read; returns its bytes."""
        match read:
            case Run():
                self._run(read)
            case Scatter():
                self._scatter(read)
        return read.nbytes

    def _run(self, run: Run) -> None:
        file = self._files[run.path]
        os.posix_fadvise(file, run.offset, run.nbytes, os.POSIX_FADV_SEQUENTIAL)
        self._fill(run.path, run.offset, run.target, run.nbytes)

    def _scatter(self, scatter: Scatter) -> None:
        file = self._files[scatter.path]
        rows, places = scatter.rows, scatter.places
        os.posix_fadvise(file, 0, 0, _advice(scatter))
        done = 0
        while done < len(rows):
            done += self._read_rows(
                file,
                scatter.offset,
                scatter.row_bytes,
                scatter.length,
                rows[done:].ctypes.data,
                places[done:].ctypes.data,
                len(rows) - done,
                self._address + scatter.target,
                scatter.place_bytes,
            )
            if done < len(rows):
                offset = scatter.offset + int(rows[done]) * scatter.row_bytes
                target = scatter.target + int(places[done]) * scatter.place_bytes
                self._fill(scatter.path, offset, target, scatter.length)
                done += 1

    def _fill(self, path: str, offset: int, target: int, nbytes: int) -> None:
        """Read as often as it takes: the system may give less than was asked for."""
        view = self._bytes.data[target : target + nbytes]
        done = 0
        while done < nbytes:
            try:
                count = os.preadv(self._files[path], [view[done:]], offset + done)
            except OSError as error:
                raise DataLoss(f"{path}: cannot be read: {error.strerror}") from error
            if not count:
                size = os.fstat(self._files[path]).st_size
                raise DataLoss(
                    f"data file {path} is {size} bytes, the table needs {offset + nbytes}"
                )
            done += count


def _advice(scatter: Scatter) -> int:
    """Whether the pages between the wanted rows should be read ahead as well."""
    apart = int(scatter.rows[-1] - scatter.rows[0]) * scatter.row_bytes / len(scatter.rows)
    return os.POSIX_FADV_RANDOM if apart > SPARSE_BYTES else os.POSIX_FADV_SEQUENTIAL
