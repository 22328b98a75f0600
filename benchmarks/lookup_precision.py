"""Pooling rows that are kept at a lower precision: ours, and FBGEMM's inference TBE, in turns.

Tables have as many rows as give the size of the float32 table, so that they are as far from fitting
into caches; both subjects convert the same values, and answer float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.lookup_subjects import Call
from benchmarks.report import Claim, Row, missing, paired_ratio
from shardserve.shards.storage import Precision, coded_row_bytes

Array = npt.NDArray[Any]

DIM, BAG = 64, 20
ROWS_ASKED = 81_920
CALLS = 8
CLAIMED = {Precision.FLOAT16: "lookup.fp16_vs_fbgemm", Precision.INT8: "lookup.int8_vs_fbgemm"}
TO_REACH = 2.0
PRECISIONS = (Precision.FLOAT16, Precision.BFLOAT16, Precision.INT8, Precision.INT4)
#: FBGEMM's names; bfloat16 its CPU kernels do not have.
SPARSE_TYPES = {Precision.FLOAT16: "FP16", Precision.INT8: "INT8", Precision.INT4: "INT4"}
WHY_NOT_TWICE = (
    "Why a lower precision is not twice FBGEMM's: in tables out of reach of the caches a row costs "
    "nearly the same whatever its size. On a virtual machine that had other work, its third-level "
    "cache emptied before each sample, rows of 256 bytes took about 40 ns, of 128 and 68 bytes "
    "33, of 36 bytes 31; the same loops over a table in the second-level cache 3 to 5. So it is "
    "finding a row that costs, not widening it, and halving its bytes gains little. Asking for "
    "every second line only was slower; other distances of prefetching made no difference."
)
#: Rows that are made at a time.
BLOCK = 1 << 16
#: How far sums of two precisions of one name may lie apart, of 20 elements in [-1, 1].
TOLERANCE = {
    Precision.FLOAT16: 0.01,
    Precision.BFLOAT16: 0.1,
    Precision.INT8: 0.2,
    Precision.INT4: 3.0,
}


@dataclass(frozen=True)
class Measured:
    """One precision's rows and claims."""

    rows: Sequence[Row]
    claims: Sequence[Claim]


class Ours:
    """A shard's own store."""

    def __init__(self, precision: Precision, rows: int) -> None:
        from shardserve.shards.coded import CodedStore
        from shardserve.shards.encoding import encode
        from shardserve.shards.memory import empty

        coded = empty((rows, coded_row_bytes(precision, DIM)), np.uint8)
        for start, block in _blocks(rows):
            coded[start : start + len(block)] = encode(precision, block)[0]
        self._store = CodedStore(coded, precision, DIM)

    def pooling(self, ids: Array) -> Call:
        rows, offsets = ids.reshape(-1), np.arange(0, ids.size + 1, BAG)
        return lambda: self._store.pool(rows, offsets, None)

    def gathering(self, ids: Array) -> Call:
        rows = ids.reshape(-1)
        return lambda: self._store.gather(rows)


class Fbgemm:
    """FBGEMM's TBE as installed. Raises ImportError where it is not."""

    def __init__(self, precision: Precision, rows: int) -> None:
        self._torch = torch = import_module("torch")
        torch.set_num_threads(1)
        configs = import_module("fbgemm_gpu.split_embedding_configs")
        common = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
        inference = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_inference")
        quantize = import_module("fbgemm_gpu.tbe.utils.quantize").quantize_embs
        kind = configs.SparseType[SPARSE_TYPES[precision]]
        self._tables = inference.IntNBitTableBatchedEmbeddingBagsCodegen(
            [("table", rows, DIM, kind, common.EmbeddingLocation.HOST)],
            output_dtype=configs.SparseType.FP32,
            device="cpu",
        )
        self._tables.initialize_weights()
        ((weights, scales),) = self._tables.split_embedding_weights()
        for start, block in _blocks(rows):
            stop = start + len(block)
            codes, scale = quantize(torch.from_numpy(block), kind)
            weights[start:stop, : codes.shape[1]] = codes
            if scale is not None:
                scales[start:stop] = scale

    def pooling(self, ids: Array) -> Call:
        rows = self._torch.from_numpy(ids.reshape(-1).astype(np.int32))
        offsets = self._torch.from_numpy(np.arange(0, ids.size + 1, BAG).astype(np.int32))
        return lambda: self._tables(rows, offsets)


def measure(table_bytes: int, rounds: int) -> Measured:
    """Every precision, one after the other."""
    rows: list[Row] = []
    claims: list[Claim] = []
    for precision in PRECISIONS:
        count = table_bytes // coded_row_bytes(precision, DIM)
        bench = _Bench(precision, count, rounds)
        rows += bench.rows()
        if precision in CLAIMED:
            claims.append(bench.claim(CLAIMED[precision]))
    return Measured(rows, claims)


class _Bench:
    def __init__(self, precision: Precision, count: int, rounds: int) -> None:
        self._precision = precision
        self._count = count
        self._rounds = rounds
        self._rng = np.random.default_rng(1)
        self._ours = Ours(precision, count)
        self._peer: Fbgemm | None = None
        self._missing = "its CPU kernels have no bfloat16"
        if precision in SPARSE_TYPES:
            try:
                self._peer = Fbgemm(precision, count)
            except ImportError as error:
                self._missing = f"not installed: {error}"
        self._check()

    def rows(self) -> Iterator[Row]:
        case = f"{self._precision}, dim {DIM}"
        gather = [self._rate(self._ours.gathering) for _ in range(self._rounds + 1)]
        yield _row("shardserve", f"gather, {case}", float(np.median(gather[1:])))
        ours = [self._rate(self._ours.pooling) for _ in range(self._rounds + 1)]
        yield _row("shardserve", f"pool, {case}, bag {BAG}", float(np.median(ours[1:])))
        if self._peer is None:
            yield missing(f"FBGEMM TBE {self._precision}", self._missing)
        else:
            peer = [self._rate(self._peer.pooling) for _ in range(self._rounds + 1)]
            yield _row("FBGEMM TBE", f"pool, {case}, bag {BAG}", float(np.median(peer[1:])))

    def claim(self, name: str) -> Claim:
        if self._peer is None:
            return Claim(name, None, TO_REACH, note=self._missing)
        theirs = self._peer.pooling
        pairs = paired_ratio(
            lambda: self._rate(self._ours.pooling), lambda: self._rate(theirs), 2 * self._rounds
        )
        note = f"{pairs.ours:.1f} million rows/s against {pairs.theirs:.1f} of FBGEMM as installed"
        return Claim(name, pairs.ratio, TO_REACH, note=note)

    def _rate(self, prepare: Callable[[Array], Call]) -> float:
        """Millions of rows per second of one sample."""
        calls = [prepare(self._ids()) for _ in range(CALLS)]
        started = time.perf_counter()
        for call in calls:
            call()
        return CALLS * ROWS_ASKED / (time.perf_counter() - started) / 1e6

    def _ids(self) -> Array:
        return self._rng.integers(0, self._count, (ROWS_ASKED // BAG, BAG))

    def _check(self) -> None:
        """Refuse to time a subject whose answer is another."""
        if self._peer is not None:
            ids = self._ids()
            np.testing.assert_allclose(
                np.asarray(self._peer.pooling(ids)()),
                self._ours.pooling(ids)(),
                atol=TOLERANCE[self._precision],
                rtol=0,
            )


def _blocks(rows: int) -> Iterator[tuple[int, Array]]:
    """The table's values in [-1, 1), and where they begin."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        yield start, rng.random((count, DIM), np.float32) * 2 - 1


def _row(subject: str, case: str, rate: float) -> Row:
    return Row(subject, case, "rows", "million/s", rate)
