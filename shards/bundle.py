"""A checkpoint's index: which tensors it has, and at which bytes of which file each one lies.

The layout on disk is TensorFlow's tensor bundle (tensorflow/core/protobuf/tensor_bundle.proto):
PREFIX.index, a table file of entries by tensor name, and PREFIX.data-00000-of-00001 and so on, the
tensors' bytes one behind the other. Nothing here imports TensorFlow, and no tensor is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardserve.batching.errors import DataLoss, InvalidArgument, NotFound, Unimplemented
from shardserve.shards import bundle_proto
from shardserve.shards.bundle_proto import DTYPES, RawEntry, SliceExtents
from shardserve.shards.ordered_code import slice_key
from shardserve.shards.sstable import read_table
from shardserve.shards.tables import Extent, Table, TableSource

_VERSION = 1


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, and where its bytes lie: row-major, little-endian, without padding.

    `crc32c` is of those bytes, masked as the index has it.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    path: str
    offset: int
    nbytes: int
    crc32c: int


@dataclass(frozen=True)
class Entry:
    """A tensor of the checkpoint.

    `dtype` is a numpy name, "bfloat16", "string", or what else TensorFlow calls it. `pieces` is one
    box, the whole tensor, unless it was saved in slices; together they hold each element once.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Bundle:
    """A checkpoint's entries by key. `prefix` is its files' path up to ".index"."""

    prefix: str
    entries: Mapping[str, Entry]

    def source(self, key: str, table_name: str) -> TableSource:
        """The tensor `key` as a table: its first dimension is the rows, the others are one row.

        Raises NotFound when there is no such tensor, InvalidArgument when it is a scalar or its
        dtype has no fixed size, Unimplemented when it was saved in slices of an inner dimension.
        """
        if key not in self.entries:
            raise NotFound(f"{self.prefix}.index: no entry {key!r}")
        entry = self.entries[key]
        if not entry.shape:
            raise InvalidArgument(f"{self.prefix}.index: entry {key!r} is a scalar, not a table")
        if itemsize(entry.dtype) is None:
            raise InvalidArgument(f"{self.prefix}.index: a table of {entry.dtype} (entry {key!r})")
        table = Table(table_name, entry.dtype, entry.shape[0], entry.shape[1:])
        return TableSource(table, tuple(self._extent(entry, piece) for piece in entry.pieces))

    def _extent(self, entry: Entry, piece: Piece) -> Extent:
        inner = math.prod(entry.shape[2:])
        if piece.lengths[2:] != entry.shape[2:]:
            raise Unimplemented(
                f"{self.prefix}.index: entry {entry.key!r} was saved in slices across dimension 2 "
                "or a later one"
            )
        first, width = (piece.starts[1], piece.lengths[1]) if len(entry.shape) > 1 else (0, 1)
        return Extent(
            piece.path,
            piece.offset,
            piece.starts[0],
            piece.starts[0] + piece.lengths[0],
            first * inner,
            (first + width) * inner,
        )


def itemsize(dtype: str) -> int | None:
    """Bytes in an element of an entry's dtype, None where they vary or are unknown."""
    if dtype == "bfloat16":
        return 2
    if dtype == "string" or dtype not in DTYPES.values():
        return None
    return np.dtype(dtype).itemsize


def open_bundle(prefix: str) -> Bundle:
    """Read PREFIX.index, and check it against the sizes of the data files.

    Raises NotFound or DataLoss, naming the file, when the index or a data file is missing, cut off,
    damaged or does not match the other; Unimplemented when the bundle is of another kind (byte
    order, version, compression) than TensorFlow writes on the machines it runs on.
    """
    return _Opening(prefix).bundle()


class _Opening:
    """One reading of an index file."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._index = f"{prefix}.index"
        self._table = read_table(self._index)
        self._shards = self._checked_header()

    def bundle(self) -> Bundle:
        entries = {entry.key: entry for entry in self._entries()}
        _check_files(entries.values())
        return Bundle(self._prefix, entries)

    def _checked_header(self) -> int:
        try:
            header = bundle_proto.header(self._table[b""])
        except (KeyError, IndexError, ValueError) as error:
            raise DataLoss(f"{self._index}: has no bundle header") from error
        if header.big_endian:
            raise Unimplemented(f"{self._index}: the bundle is big-endian")
        if header.min_consumer > _VERSION or _VERSION in header.bad_consumers:
            raise Unimplemented(
                f"{self._index}: the bundle is for readers of version {header.min_consumer} and "
                f"later, this is version {_VERSION}"
            )
        return header.shards

    def _entries(self) -> Iterator[Entry]:
        """Every tensor; the slices' own entries, whose keys start with a zero, come with theirs."""
        for key, value in self._table.items():
            if key and not key.startswith(b"\0"):
                yield self._entry(key.decode(errors="backslashreplace"), self._raw(key, value))

    def _raw(self, key: bytes, value: bytes) -> RawEntry:
        try:
            return bundle_proto.entry(value)
        except (IndexError, ValueError) as error:
            raise DataLoss(f"{self._index}: entry {key!r} is damaged") from error

    def _entry(self, key: str, raw: RawEntry) -> Entry:
        if raw.slices:
            pieces = tuple(self._slice(key, raw, extents) for extents in raw.slices)
        else:
            pieces = (self._piece(key, raw, (0,) * len(raw.shape), raw.shape),)
        if sum(math.prod(piece.lengths) for piece in pieces) != math.prod(raw.shape):
            raise DataLoss(f"{self._index}: the slices of entry {key!r} do not make up the tensor")
        return Entry(key, raw.dtype, raw.shape, pieces)

    def _slice(self, key: str, parent: RawEntry, extents: SliceExtents) -> Piece:
        coded = slice_key(key, extents)
        if coded not in self._table:
            raise DataLoss(f"{self._index}: entry {key!r} has a slice that is not in the index")
        starts = tuple(start for start, _ in extents)
        lengths = tuple(
            size if length is None else length
            for (_, length), size in zip(extents, parent.shape, strict=False)
        )
        ends = tuple(start + length for start, length in zip(starts, lengths, strict=False))
        if len(lengths) != len(parent.shape) or any(
            start < 0 or end > size
            for start, end, size in zip(starts, ends, parent.shape, strict=True)
        ):
            raise DataLoss(f"{self._index}: entry {key!r} has a slice that is outside of it")
        return self._piece(key, self._raw(coded, self._table[coded]), starts, lengths)

    def _piece(
        self, key: str, raw: RawEntry, starts: tuple[int, ...], lengths: tuple[int, ...]
    ) -> Piece:
        size = itemsize(raw.dtype)
        if size is not None and raw.size != math.prod(lengths) * size:
            raise DataLoss(
                f"{self._index}: entry {key!r} is {raw.size} bytes, "
                f"{raw.dtype} {list(lengths)} takes {math.prod(lengths) * size}"
            )
        if not 0 <= raw.shard < self._shards:
            raise DataLoss(
                f"{self._index}: entry {key!r} is in data file {raw.shard} of {self._shards}"
            )
        return Piece(starts, lengths, self._data_path(raw.shard), raw.offset, raw.size, raw.crc32c)

    def _data_path(self, shard: int) -> str:
        return f"{self._prefix}.data-{shard:05d}-of-{self._shards:05d}"


def _check_files(entries: Iterable[Entry]) -> None:
    """Compare each data file with the entry that ends last in it."""
    last: dict[str, tuple[int, str]] = {}
    for entry in entries:
        for piece in entry.pieces:
            reach = (piece.offset + piece.nbytes, entry.key)
            last[piece.path] = max(last.get(piece.path, reach), reach)
    for path, (end, key) in sorted(last.items()):
        check_size(path, end, f"entry {key!r}")


def check_size(path: str, needed: int, what: str) -> None:
    """Raise NotFound if there is no such data file, DataLoss if it is too short for `what`."""
    try:
        size = Path(path).stat().st_size
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such data file, {what} is in it") from error
    if size < needed:
        raise DataLoss(f"data file {path} is {size} bytes, {what} needs {needed}")
