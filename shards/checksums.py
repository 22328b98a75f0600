"""Checks whether a checkpoint's bytes are those that were written, by the checksums in its index.

A checksum is of a whole entry, or of a slice that was saved as one, while a shard reads only some
rows of it. So this is a pass of its own, once for all shards, before any of them reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import google_crc32c

from shardserve.batching.errors import DataLoss, NotFound
from shardserve.shards.bundle import Bundle, Piece
from shardserve.shards.sstable import masked

CHUNK_BYTES = 4 << 20
READERS = 4
#: How often `progress` is told at least.
_STEP_SECONDS = 0.2


def entry_bytes(bundle: Bundle, keys: Iterable[str]) -> int:
    """How many bytes `verify_entries` reads."""
    return sum(piece.nbytes for _, piece in _pieces(bundle, keys))


def verify_entries(
    bundle: Bundle, keys: Iterable[str], progress: Callable[[int], None] | None = None
) -> None:
    """Read all bytes of the entries, a few chunks at a time in memory.

    `progress` is told of bytes as they are read, in steps, on the calling thread; what it raises
    ends the reading. Raises DataLoss, naming the file and the entry, for the first whose bytes do
    not match their checksum or are not there, and NotFound for a file that is missing.
    """
    reading = _Reading()
    with ThreadPoolExecutor(READERS, "verifier") as threads:
        checks = [
            threads.submit(_verify, key, piece, reading) for key, piece in _pieces(bundle, keys)
        ]
        try:
            for check in checks:
                while not check.done():
                    wait([check], _STEP_SECONDS)
                    if progress is not None:
                        progress(reading.taken())
                check.result()
        except BaseException:
            reading.stopped.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    if progress is not None:
        progress(reading.taken())


def _pieces(bundle: Bundle, keys: Iterable[str]) -> list[tuple[str, Piece]]:
    return [(key, piece) for key in sorted(set(keys)) for piece in bundle.entries[key].pieces]


class _Reading:
    """What the threads have read together since somebody looked, and whether they are to stop."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._bytes += nbytes

    def taken(self) -> int:
        with self._lock:
            taken, self._bytes = self._bytes, 0
            return taken


def _verify(key: str, piece: Piece, reading: _Reading) -> None:
    where = f"{piece.path}: entry {key!r}"
    found = masked(_crc32c(where, piece, reading))
    if found != piece.crc32c and not reading.stopped.is_set():
        raise DataLoss(
            f"{where}, {piece.nbytes} bytes from byte {piece.offset} on, does not match its "
            f"checksum: it is {found:#010x}, the index has {piece.crc32c:#010x}"
        )


def _crc32c(where: str, piece: Piece, reading: _Reading) -> int:
    crc, left = 0, piece.nbytes
    try:
        with Path(piece.path).open("rb", buffering=0) as file:
            file.seek(piece.offset)
            while left and not reading.stopped.is_set():
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise DataLoss(f"{where} ends {left} bytes early")
                crc = google_crc32c.extend(crc, chunk)
                left -= len(chunk)
                reading.add(len(chunk))
    except FileNotFoundError as error:
        raise NotFound(f"{piece.path}: no such data file") from error
    except OSError as error:
        raise DataLoss(f"{piece.path}: cannot be read: {error.strerror}") from error
    return crc
