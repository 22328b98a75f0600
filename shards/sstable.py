"""Reading a TensorFlow table file: LevelDB's sorted string table, version of TensorFlow 1 and 2.

The format is described in LevelDB's doc/table_format.md. A file is data blocks, an index block that
holds a handle (offset, size) for each, and a footer with the index block's handle and a magic
number. A block is entries, each sharing a prefix with the key before it, then restart points; one
byte of compression type and a masked CRC-32C follow it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from shardserve.batching.errors import DataLoss, NotFound, Unimplemented

MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5
_UNCOMPRESSED = 0
_COMPRESSIONS = {1: "snappy"}


def read_table(path: str) -> dict[bytes, bytes]:
    """All entries of a table file, in the file's order (by key).

    Raises NotFound when there is no file; DataLoss, naming it, when it is cut off, is no table or
    does not match its checksums; Unimplemented when a block is compressed.
    """
    data = _read(path)
    try:
        return dict(_entries(path, data))
    except (IndexError, UnicodeDecodeError) as error:
        raise DataLoss(f"{path}: a block is cut off or damaged") from error


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except OSError as error:
        raise DataLoss(f"{path}: cannot be read: {error.strerror}") from error


def _entries(path: str, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(data) < _FOOTER or int.from_bytes(data[-8:], "little") != MAGIC:
        raise DataLoss(
            f"{path}: is {len(data)} bytes without a table's footer: cut off, or no table"
        )
    footer = data[-_FOOTER:]
    _, _, at = _handle(footer, 0)
    offset, size, _ = _handle(footer, at)
    for _, handle in _block_entries(_block(path, data, offset, size)):
        offset, size, _ = _handle(handle, 0)
        yield from _block_entries(_block(path, data, offset, size))


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """A block's offset and size, and the place behind them."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return offset, size, at


def _block(path: str, data: bytes, offset: int, size: int) -> bytes:
    """A block's contents, checked."""
    end = offset + size
    trailer = data[end : end + _TRAILER]
    if len(trailer) < _TRAILER:
        raise DataLoss(f"{path}: is {len(data)} bytes, a block needs {end + _TRAILER}")
    if masked(google_crc32c.value(data[offset : end + 1])) != int.from_bytes(trailer[1:], "little"):
        raise DataLoss(f"{path}: the block at byte {offset} does not match its checksum")
    if trailer[0] != _UNCOMPRESSED:
        kind = _COMPRESSIONS.get(trailer[0], f"type {trailer[0]}")
        raise Unimplemented(f"{path}: the block at byte {offset} is compressed ({kind})")
    return data[offset:end]


def masked(crc: int) -> int:
    """LevelDB stores a rotated CRC: the CRC of data that holds CRCs would be weak."""
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return (rotated + 0xA282EAD8) & 0xFFFFFFFF


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        unshared, at = varint(block, at)
        length, at = varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A base-128 number (protobuf's and LevelDB's), and the place behind it.

    Raises IndexError where the data ends before the number does.
    """
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
