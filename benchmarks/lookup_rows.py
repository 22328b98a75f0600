"""Tables whose rows are kept at some precision: as our stores, and in FBGEMM's inference TBE.

Both keep the same random values in [-1, 1), and answer float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.lookup_subjects import Call
from shardserve.shards.coded import CodedStore
from shardserve.shards.encoding import encode
from shardserve.shards.memory import empty
from shardserve.shards.storage import Precision, coded_row_bytes
from shardserve.shards.store import HostStore, SliceStore

Array = npt.NDArray[Any]

#: FBGEMM's names; bfloat16 its CPU kernels do not have.
SPARSE_TYPES = {
    Precision.FLOAT32: "FP32",
    Precision.FLOAT16: "FP16",
    Precision.INT8: "INT8",
    Precision.INT4: "INT4",
}
#: How far sums of two precisions of one name may lie apart, of 20 elements in [-1, 1]; those of
#: more may by as many times more.
TOLERANCE = {
    Precision.FLOAT32: 1e-4,
    Precision.FLOAT16: 0.01,
    Precision.BFLOAT16: 0.1,
    Precision.INT8: 0.2,
    Precision.INT4: 3.0,
}
#: Rows that are made at a time.
_BLOCK = 1 << 16


def row_bytes(precision: Precision, dim: int) -> int:
    """Bytes of a row of ours."""
    return 4 * dim if precision is Precision.FLOAT32 else coded_row_bytes(precision, dim)


def store_of(precision: Precision, rows: int, dim: int, seed: int = 0) -> SliceStore:
    """A shard's own store of so many rows."""
    if precision is Precision.FLOAT32:
        values = empty((rows, dim), np.float32)
        for start, block in _blocks(rows, dim, seed):
            values[start : start + len(block)] = block
        return HostStore(values)
    coded = empty((rows, coded_row_bytes(precision, dim)), np.uint8)
    for start, block in _blocks(rows, dim, seed):
        coded[start : start + len(block)] = encode(precision, block)[0]
    return CodedStore(coded, precision, dim)


class Tbe:
    """FBGEMM's TBE as installed, of tables of `rows` rows. Raises ImportError where it is not.

    Table t's values are those of `store_of` with seed t.
    """

    def __init__(self, precision: Precision, rows: Sequence[int], dim: int) -> None:
        self._torch = torch = import_module("torch")
        torch.set_num_threads(1)
        configs = import_module("fbgemm_gpu.split_embedding_configs")
        common = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
        inference = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_inference")
        kind = configs.SparseType[SPARSE_TYPES[precision]]
        host = common.EmbeddingLocation.HOST
        self._tables = inference.IntNBitTableBatchedEmbeddingBagsCodegen(
            [(f"table{t}", count, dim, kind, host) for t, count in enumerate(rows)],
            output_dtype=configs.SparseType.FP32,
            device="cpu",
        )
        self._tables.initialize_weights()
        quantize = import_module("fbgemm_gpu.tbe.utils.quantize").quantize_embs
        split = self._tables.split_embedding_weights()
        for t, (count, (weights, scales)) in enumerate(zip(rows, split, strict=True)):
            for start, block in _blocks(count, dim, t):
                stop = start + len(block)
                if precision is Precision.FLOAT32:
                    weights[start:stop] = torch.from_numpy(block.view(np.uint8))
                    continue
                codes, scale = quantize(torch.from_numpy(block), kind)
                weights[start:stop, : codes.shape[1]] = codes
                if scale is not None:
                    scales[start:stop] = scale

    def pooling(self, ids: Array, offsets: Array) -> Call:
        """A call that answers [bags, tables * dim]: the ids and bags of all tables, in order."""
        rows = self._torch.from_numpy(ids.astype(np.int32))
        bounds = self._torch.from_numpy(offsets.astype(np.int32))
        return lambda: self._tables(rows, bounds)


def _blocks(rows: int, dim: int, seed: int) -> Iterator[tuple[int, Array]]:
    """The table's values, and where they begin."""
    rng = np.random.default_rng(seed)
    for start in range(0, rows, _BLOCK):
        yield start, rng.random((min(_BLOCK, rows - start), dim), np.float32) * 2 - 1
