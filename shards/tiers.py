"""From a shard's slices to its stores: each in the tier, at the precision, that its layout says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.coded import CodedStore
from shardserve.shards.gpu_loading import load_gpu
from shardserve.shards.layout import Slice
from shardserve.shards.loading import Progress, load_coded, load_slice
from shardserve.shards.mapped import MappedStore
from shardserve.shards.storage import Tier
from shardserve.shards.store import HostStore, SliceStore
from shardserve.shards.tables import TableSource


def open_stores(
    sources: Mapping[str, TableSource],
    slices: Sequence[Slice],
    progress: Progress | None = None,
    cache_bytes: int = 0,
) -> Iterator[SliceStore]:
    """A store for each slice, made when it is asked for; `progress` is told of bytes read.

    `cache_bytes` is what the mapped slices' caches take together, each its share by bytes. Raises
    as `load_slice`, `load_coded`, `MappedStore` and `load_gpu` do, and InvalidArgument for a slice
    of a table that is not in `sources`.
    """
    for piece in slices:
        if piece.table not in sources:
            raise InvalidArgument(f"slice of table {piece.table!r}: the model has no such table")
    mapped = sum(
        piece.nbytes(sources[piece.table].table)
        for piece in slices
        if piece.storage.tier is Tier.MAPPED
    )
    for piece in slices:
        source = sources[piece.table]
        if piece.storage.tier is Tier.MAPPED:
            share = cache_bytes * piece.nbytes(source.table) // max(mapped, 1)
            yield MappedStore(source, piece, share)
        elif piece.storage.tier is Tier.GPU:
            yield load_gpu(source, piece, progress)
        elif piece.storage.is_coded(source.table):
            coded = load_coded(source, piece, progress)
            yield CodedStore(coded, piece.storage.precision, piece.columns)
        else:
            yield HostStore(load_slice(source, piece, progress), source.table.dtype)
