"""Pooling rows at every precision, ids uniform and Zipf: ours and FBGEMM's inference TBE.

Tables have as many rows as give the size of the float32 table, so that they are as far from fitting
into caches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.lookup_rows import SPARSE_TYPES, TOLERANCE, Tbe, row_bytes, store_of
from benchmarks.lookup_subjects import Call
from benchmarks.report import Claim, Row, missing, paired_ratio
from benchmarks.workloads import scatter, zipf_ranks
from shardserve.shards.storage import Precision

Array = npt.NDArray[Any]

DIM = 64
ROWS_ASKED = 81_920
CALLS = 8
CLAIMED = {Precision.FLOAT16: "lookup.fp16_vs_fbgemm", Precision.INT8: "lookup.int8_vs_fbgemm"}
TO_REACH = 2.0
PRECISIONS = (
    Precision.FLOAT32,
    Precision.FLOAT16,
    Precision.BFLOAT16,
    Precision.INT8,
    Precision.INT4,
)
WHY_NOT_TWICE = (
    "Why a lower precision may not be twice FBGEMM's: what a short row costs is finding its page. "
    "On a virtual machine, one core, asking for the first line of random rows in 1 GiB and reading "
    "nothing took 16 ns a row; 4,096 lines in as many pages, all in the second-level cache, 14, "
    "and 0.6 side by side; the loops over a table in that cache 4 to 5. So 16 ns are below what "
    "rows of 128 and 68 bytes take here, whatever is done with them."
)


@dataclass(frozen=True)
class Case:
    """Bags of so many ids, Zipf with the exponent `alpha` (0 is uniform)."""

    bag: int
    alpha: float

    def __str__(self) -> str:
        return f"bag {self.bag}, " + (f"Zipf {self.alpha}" if self.alpha else "uniform")


UNIFORM = (Case(20, 0.0), Case(100, 0.0))
CASES = (*UNIFORM, Case(20, 0.9), Case(20, 1.1), Case(20, 1.3))


@dataclass(frozen=True)
class Measured:
    """Rows and claims."""

    rows: Sequence[Row]
    claims: Sequence[Claim]


def measure(table_bytes: int, rounds: int, cases: Sequence[Case] = CASES) -> Measured:
    """Every precision, one after the other."""
    rows: list[Row] = []
    claims: list[Claim] = []
    for precision in PRECISIONS:
        bench = _Bench(precision, table_bytes // row_bytes(precision, DIM), rounds)
        rows += bench.rows(cases)
        if precision in CLAIMED:
            claims.append(bench.claim(CLAIMED[precision]))
    return Measured(rows, claims)


class _Bench:
    def __init__(self, precision: Precision, count: int, rounds: int) -> None:
        self._precision = precision
        self._count = count
        self._rounds = rounds
        self._rng = np.random.default_rng(1)
        self._store = store_of(precision, count, DIM)
        self._peer: Tbe | None = None
        self._missing = "its CPU kernels have no bfloat16"
        if precision in SPARSE_TYPES:
            try:
                self._peer = Tbe(precision, [count], DIM)
            except ImportError as error:
                self._missing = f"not installed: {error}"

    def rows(self, cases: Sequence[Case]) -> Iterator[Row]:
        """Both subjects' rates, case by case, in turns."""
        what = f"{self._precision}, dim {DIM}"
        if self._peer is None:
            yield missing(f"FBGEMM TBE {self._precision}", self._missing)
        for case in cases:
            self._check(case)
            for subject, rate in self._rates(case).items():
                yield _row(subject, f"pool, {what}, {case}", rate)
        gathers = [self._rate(UNIFORM[0], self._gathering) for _ in range(self._rounds + 1)]
        yield _row("shardserve", f"gather, {what}, uniform", statistics.median(gathers[1:]))

    def claim(self, name: str) -> Claim:
        """The lower of the ratios at the bags' sizes, each measured in turns."""
        peer = self._peer
        if peer is None:
            return Claim(name, None, TO_REACH, note=self._missing)
        found = [
            (
                case,
                paired_ratio(
                    partial(self._rate, case, self._pooling),
                    partial(self._rate, case, self._peer_pooling),
                    2 * self._rounds,
                ),
            )
            for case in UNIFORM
        ]
        note = "; ".join(
            f"{pairs.ratio:.2f} for bags of {case.bag}, {pairs.ours:.1f} million rows/s against "
            f"{pairs.theirs:.1f} of FBGEMM as installed"
            for case, pairs in found
        )
        return Claim(name, min(pairs.ratio for _, pairs in found), TO_REACH, note=note)

    def _rates(self, case: Case) -> dict[str, float]:
        subjects = {"shardserve": self._pooling}
        if self._peer is not None:
            subjects["FBGEMM TBE"] = self._peer_pooling
        rates: dict[str, list[float]] = {name: [] for name in subjects}
        for _ in range(self._rounds + 1):
            for name, prepare in subjects.items():
                rates[name].append(self._rate(case, prepare))
        return {name: statistics.median(measured[1:]) for name, measured in rates.items()}

    def _rate(self, case: Case, prepare: Callable[[Array, Array], Call]) -> float:
        """Millions of rows per second of one sample."""
        inputs = [self._inputs(case) for _ in range(CALLS)]
        calls = [prepare(ids, offsets) for ids, offsets in inputs]
        started = time.perf_counter()
        for call in calls:
            call()
        seconds = time.perf_counter() - started
        return sum(len(ids) for ids, _ in inputs) / seconds / 1e6

    def _pooling(self, ids: Array, offsets: Array) -> Call:
        return lambda: self._store.pool(ids, offsets, None)

    def _peer_pooling(self, ids: Array, offsets: Array) -> Call:
        assert self._peer is not None
        return self._peer.pooling(ids, offsets)

    def _gathering(self, ids: Array, _offsets: Array) -> Call:
        return lambda: self._store.gather(ids)

    def _inputs(self, case: Case) -> tuple[Array, Array]:
        """Ids and the bags' offsets."""
        count = ROWS_ASKED // case.bag * case.bag
        ids = scatter(zipf_ranks(self._rng, self._count, count, case.alpha), self._count)
        return ids, np.arange(0, count + 1, case.bag)

    def _check(self, case: Case) -> None:
        """Refuse to time a subject whose answer is another."""
        if self._peer is not None:
            ids, offsets = self._inputs(case)
            np.testing.assert_allclose(
                np.asarray(self._peer.pooling(ids, offsets)()),
                self._store.pool(ids, offsets, None),
                atol=TOLERANCE[self._precision] * case.bag / 20,
                rtol=0,
            )


def _row(subject: str, case: str, rate: float) -> Row:
    return Row(subject, case, "rows", "million/s", rate)
