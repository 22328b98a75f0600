"""Data files that are open for reading, and reads of them into arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import DataLoss, NotFound
from shardserve.shards.kernels import address_of
from shardserve.shards.native import library
from shardserve.shards.reads import Read, Run, Scatter

Array = npt.NDArray[Any]

#: Rising rows that begin no farther apart than this, on average, are read together with what lies
#: between them. A read of a row that the system has in its cache takes as long as copying this.
DENSE_BYTES = 8 << 10
#: What is read of dense rows at a time: little enough to stay in a core's own cache.
BLOCK_BYTES = 256 << 10
#: How far ahead of such a read the system is told of it, by each thread: a disk wants some MB.
BLOCKS_AHEAD_BYTES = 4 << 20


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A file's descriptor. Raises NotFound or DataLoss, naming the file, if it does not open."""
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


class Reader:
    """Performs reads into one contiguous array, `files` being the descriptors by path.

    The system is told of scattered rows `ahead` of their turn, so that it fetches as many at a time
    from a disk; not of any where that is 0, which is for rows that rise: dense ones are then picked
    from larger reads, and the system reads ahead by itself.

    Safe for many threads at once, as long as no two of the reads share a byte.
    """

    def __init__(self, result: Array, files: Mapping[str, int], ahead: int = 0) -> None:
        self._bytes = result.reshape(-1).view(np.uint8)
        self._address = self._bytes.ctypes.data
        self._files = files
        self._ahead = ahead
        self._read_rows = library().kernels["read_rows"]
        self._read_blocks = library().kernels["read_blocks"]

    def read(self, read: Read) -> int:
        """Perform one read; returns its bytes.

        Raises DataLoss, naming the file, when it cannot be read or ends early.
        """
        match read:
            case Run():
                self._fill(read.path, read.offset, read.target, read.nbytes)
            case Scatter():
                self._scatter(read)
        return read.nbytes

    def _scatter(self, scatter: Scatter) -> None:
        file = self._files[scatter.path]
        rows, places = scatter.rows, scatter.places
        done = 0
        buffer = np.empty(BLOCK_BYTES if self._is_dense(scatter) else 0, np.uint8)
        if len(buffer):
            read, *more = self._read_blocks, address_of(buffer), len(buffer), BLOCKS_AHEAD_BYTES
        else:
            read, *more = self._read_rows, self._ahead
        while done < len(rows):
            done += read(
                file,
                scatter.offset,
                scatter.row_bytes,
                scatter.length,
                rows[done:].ctypes.data,
                places[done:].ctypes.data,
                len(rows) - done,
                self._address + scatter.target,
                scatter.place_bytes,
                *more,
            )
            if done < len(rows):
                offset = scatter.offset + int(rows[done]) * scatter.row_bytes
                target = scatter.target + int(places[done]) * scatter.place_bytes
                self._fill(scatter.path, offset, target, scatter.length)
                done += 1

    def _is_dense(self, scatter: Scatter) -> bool:
        return not self._ahead and scatter.apart <= DENSE_BYTES and scatter.length <= BLOCK_BYTES

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
