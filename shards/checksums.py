"""Checks whether a checkpoint's bytes are those that were written, by the checksums in its index.

A checksum is of a whole entry, or of a slice that was saved as one, while a shard reads only some
rows of it. So this is a pass of its own, once for all shards, before any of them reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c

from shardserve.batching.errors import DataLoss, NotFound
from shardserve.shards.bundle import Bundle, Piece
from shardserve.shards.sstable import masked

CHUNK_BYTES = 4 << 20
READERS = 4


def verify_entries(bundle: Bundle, keys: Iterable[str]) -> None:
    """Read all bytes of the entries, a few chunks at a time in memory.

    Raises DataLoss, naming the file and the entry, for the first whose bytes do not match their
    checksum or are not there, and NotFound for a file that is missing.
    """
    pieces = [(key, piece) for key in sorted(set(keys)) for piece in bundle.entries[key].pieces]
    with ThreadPoolExecutor(READERS, "verifier") as threads:
        checks = [threads.submit(_verify, key, piece) for key, piece in pieces]
        try:
            for check in checks:
                check.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _verify(key: str, piece: Piece) -> None:
    where = f"{piece.path}: entry {key!r}"
    found = masked(_crc32c(where, piece))
    if found != piece.crc32c:
        raise DataLoss(
            f"{where}, {piece.nbytes} bytes from byte {piece.offset} on, does not match its "
            f"checksum: it is {found:#010x}, the index has {piece.crc32c:#010x}"
        )


def _crc32c(where: str, piece: Piece) -> int:
    crc, left = 0, piece.nbytes
    try:
        with Path(piece.path).open("rb", buffering=0) as file:
            file.seek(piece.offset)
            while left:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise DataLoss(f"{where} ends {left} bytes early")
                crc = google_crc32c.extend(crc, chunk)
                left -= len(chunk)
    except FileNotFoundError as error:
        raise NotFound(f"{piece.path}: no such data file") from error
    except OSError as error:
        raise DataLoss(f"{piece.path}: cannot be read: {error.strerror}") from error
    return crc
