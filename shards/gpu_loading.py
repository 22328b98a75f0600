"""From the checkpoint to a GPU: rows are read, converted and sent over, some at a time."""

from __future__ import annotations

from shardserve.batching.errors import FailedPrecondition, ResourceExhausted
from shardserve.shards.gpu_calls import Device
from shardserve.shards.gpu_device import the_gpu
from shardserve.shards.gpu_store import GpuStore
from shardserve.shards.layout import Slice
from shardserve.shards.loading import Progress, load_rows
from shardserve.shards.tables import TableSource


def load_gpu(
    source: TableSource,
    piece: Slice,
    progress: Progress | None = None,
    device: Device | None = None,
) -> GpuStore:
    """The slice's rows on this process's GPU, or on `device`; its kernels are compiled then.

    The host's memory that is needed is a few buffers. Raises as `load_rows` does, and, naming the
    table, FailedPrecondition where there is no GPU and ResourceExhausted where its memory is short.
    """
    where = f"table {piece.table!r}"
    table = source.table
    precision = piece.storage.precision if piece.storage.is_coded(table) else None
    try:
        store = GpuStore(
            device or the_gpu(), piece.rows.count, piece.columns, table.dtype, precision
        )
    except (FailedPrecondition, ResourceExhausted) as error:
        raise type(error)(f"{where}: {error.message}") from error
    load_rows(source, piece, store.put, progress)
    store.prepare()
    return store
