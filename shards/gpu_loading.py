"""From the checkpoint to a GPU: rows are read, converted and sent over, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shardserve.batching.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ServingError,
)
from shardserve.shards.gpu_calls import Device
from shardserve.shards.gpu_device import the_gpu
from shardserve.shards.gpu_store import GpuStore
from shardserve.shards.layout import Slice
from shardserve.shards.loading import Progress, load_rows
from shardserve.shards.tables import TableSource

#: Errors that name the device, not yet the table.
_OF_THE_DEVICE = (FailedPrecondition, ResourceExhausted, Internal)


def load_gpu(
    source: TableSource,
    piece: Slice,
    progress: Progress | None = None,
    device: Device | None = None,
) -> GpuStore:
    """The slice's rows on this process's GPU, or on `device`; its kernels are compiled then.

    The host's memory that is needed is a few buffers. Raises as `load_rows` does, and, naming the
    table, FailedPrecondition where there is no GPU, ResourceExhausted where its memory is short,
    InvalidArgument for rows that are too wide for it, and Internal where it fails.
    """
    table = source.table
    precision = piece.storage.precision if piece.storage.is_coded(table) else None
    with _naming(piece.table, InvalidArgument, *_OF_THE_DEVICE):
        gpu = device or the_gpu()
        store = GpuStore(gpu, piece.rows.count, piece.columns, table.dtype, precision)
    with _naming(piece.table, *_OF_THE_DEVICE):
        load_rows(source, piece, store.put, progress)
        gpu.release_unused()
        store.prepare()
    return store


@contextmanager
def _naming(table: str, *errors: type[ServingError]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise type(error)(f"table {table!r}: {error.message}") from error
