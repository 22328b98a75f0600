"""Pooling rows that do not lie in memory ready to be summed: they are fetched in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.shards.arguments import checked_offsets, checked_rows, checked_weights
from shardserve.shards.kernels import RowKernels

Array = npt.NDArray[Any]
#: (row numbers int64 [n], out [n, columns]): put the rows there.
Fetch = Callable[[Array, Array], None]

#: What a chunk's rows take: little enough to stay in a core's own cache.
CHUNK_BYTES = 1 << 19


def pool_in_chunks(
    fetch: Fetch,
    count: int,
    sums: tuple[int, npt.DTypeLike],
    rows: Array,
    offsets: Array,
    weights: Array | None,
) -> Array:
    """The sums of the bags, [bags, columns]; `sums` is (columns, float32 or float64).

    The arguments are checked against `count` rows as `RowKernels.pool` checks them, before any is
    fetched. Sums are to the bit those of `RowKernels.pool` over the rows that `fetch` gives: a bag
    that goes over the end of a chunk takes its sum along, as the next chunk's first row.
    """
    columns, dtype = sums
    rows = checked_rows(rows, count)
    offsets = checked_offsets(offsets, len(rows))
    weights = checked_weights(weights, len(rows), dtype)
    out = np.zeros((len(offsets) - 1, columns), dtype)
    step = max(1, CHUNK_BYTES // out[0].nbytes) if len(out) else 1
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        first = int(np.searchsorted(offsets, start, "right")) - 1
        last = int(np.searchsorted(offsets, stop, "left"))
        chunk = np.empty((1 + stop - start, out.shape[1]), out.dtype)
        chunk[0] = out[first]
        fetch(rows[start:stop], chunk[1:])
        bounds = np.clip(offsets[first : last + 1], start, stop) - start + 1
        bounds[0] = 0
        factors = None if weights is None else np.insert(weights[start:stop], 0, 1)
        out[first:last] = RowKernels(chunk).pool(np.arange(len(chunk)), bounds, factors)
    return out
