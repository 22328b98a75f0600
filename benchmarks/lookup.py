"""Gather and pool over a table too large for caches, on one thread: ours, and what else there is.

The process is bound to one core. A figure is the bytes of the rows that were asked for, per second:
what is written, or read again to be summed, is overhead. Every call gets ids of its own, uniform
over the table, since ids that somebody asked for before would be in the cache. Rows at other
precisions, at Zipf ids and over many tables are counted, not weighed: see `lookup_precision` and
`lookup_tables`.

A sample is CALLS calls back to back. `--set mebibytes=N` changes the table's size (1024),
`--set rounds=N` the samples per figure (7).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.lookup_precision import CASES, UNIFORM, WHY_NOT_TWICE, measure
from benchmarks.lookup_precision import CLAIMED as PRECISION_CLAIMS
from benchmarks.lookup_subjects import SUBJECTS, Call, Subject, sequential_read
from benchmarks.lookup_tables import measure as measure_tables
from benchmarks.report import Claim, Options, Paired, Report, Row, missing, paired_ratio

Array = npt.NDArray[Any]

DIMS = (32, 64, 128)
BAGS = (1, 20, 100)
ROWS_ASKED = 81_920
CALLS = 8
CLAIMED = (64, 20)
SAME_MEMORY = (
    "shardserve, numpy, embedding_bag and the sequential read use the same memory, in huge pages; "
    "TensorFlow and FBGEMM allocate their own. FBGEMM gets small pages as it is installed, and is "
    "the subject of the claim so; in huge pages it is shown for comparison."
)
WHY_NOT_SEQUENTIAL = (
    "Why random rows stay below a sequential read, as far as it was looked into: on a Xeon with a "
    "large mesh, in a virtual machine, a dependent read from 1 GiB took 253 ns, and a bare C loop "
    "that prefetches random rows of 256 bytes and adds nothing reached 10.8 GB/s at best. That is "
    "what about 48 cache lines in flight give at such a latency (no hardware counters were to be "
    "had to confirm it). A read in order is not bound by latency: the prefetcher runs ahead of it."
)
OURS, FBGEMM = "shardserve", "FBGEMM TBE fp32"


@dataclass(frozen=True)
class Plan:
    """What to measure: table bytes, samples per figure, and the cases."""

    table_bytes: int
    rounds: int
    dims: tuple[int, ...]
    bags: tuple[int, ...]


def run(options: Options) -> Report:
    """The benchmark. Peers that are not installed are rows that say so."""
    plan = _plan(options)
    with one_core():
        memory = _table_memory(plan.table_bytes)
        rows, claims = [], []
        for dim in plan.dims:
            bench = _Bench(memory.reshape(-1, dim), plan)
            rows += bench.rows()
            if dim == CLAIMED[0]:
                claims = bench.claims()
            del bench
        del memory
        precisions = measure(plan.table_bytes, plan.rounds, UNIFORM if options.quick else CASES)
        rows += precisions.rows
        claims += precisions.claims
        rows += measure_tables(plan.table_bytes, plan.rounds)
    return Report("lookup", rows, claims, _notes(plan, claims))


def _plan(options: Options) -> Plan:
    mebibytes = int(options.settings.get("mebibytes", 64 if options.quick else 1024))
    rounds = int(options.settings.get("rounds", 3 if options.quick else 7))
    dims, bags = ((64,), (20,)) if options.quick else (DIMS, BAGS)
    return Plan(mebibytes << 20, rounds, dims, bags)


@contextmanager
def one_core() -> Iterator[None]:
    """Bind this process, and the threads it starts meanwhile, to one of its cores."""
    before = os.sched_getaffinity(0)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _table_memory(nbytes: int) -> Array:
    """Float32 values in memory as a shard's slices have it."""
    from shardserve.shards.memory import empty

    values = empty((nbytes // 4,), np.float32)
    rng = np.random.default_rng(0)
    for start in range(0, len(values), 1 << 22):
        part = values[start : start + (1 << 22)]
        part[:] = rng.random(len(part), np.float32)
    return values


class _Bench:
    """All subjects over one table."""

    def __init__(self, table: Array, plan: Plan) -> None:
        self._table = table
        self._plan = plan
        self._rng = np.random.default_rng(1)
        self._read = sequential_read()
        self._read(table[0])
        self._subjects: dict[str, Subject] = {}
        self._missing: list[Row] = []
        for name, make in SUBJECTS.items():
            try:
                self._subjects[name] = make(table)
            except ImportError as error:
                self._missing.append(missing(name, f"not installed: {error}"))
            except OSError as error:
                self._missing.append(missing(name, f"not to be had here: {error}"))

    def rows(self) -> list[Row]:
        """Every subject's rate, case by case, and the sequential read's."""
        dim = self._table.shape[1]
        rows = list(self._missing)
        for bag in self._plan.bags:
            self._check(bag)
            rows += self._case(f"pool, dim {dim}, bag {bag}", bag, lambda s, ids: s.pooling(ids))
        rows += self._case(f"gather, dim {dim}", 1, lambda s, ids: s.gathering(ids))
        read = statistics.median(self.sequential_rate() for _ in range(self._plan.rounds))
        rows.append(_row("sequential read", f"dim {dim}", read))
        return rows

    def claims(self) -> list[Claim]:
        """Ours against a sequential read of the same table, and against FBGEMM, in turns."""
        bag = CLAIMED[1]

        def ours() -> float:
            return self.pool_rate(OURS, bag)

        read = paired_ratio(ours, self.sequential_rate, 2 * self._plan.rounds)
        claims = [_claim("lookup.fp32_vs_sequential_read", read, 0.9, "a sequential read")]
        if FBGEMM not in self._subjects:
            why = "FBGEMM is not installed"
            return [*claims, Claim("lookup.fp32_vs_fbgemm", None, 1.8, note=why)]
        peer = paired_ratio(ours, lambda: self.pool_rate(FBGEMM, bag), 2 * self._plan.rounds)
        return [*claims, _claim("lookup.fp32_vs_fbgemm", peer, 1.8, "FBGEMM as installed")]

    def pool_rate(self, name: str, bag: int) -> float:
        """GB/s of one sample."""
        subject = self._subjects[name]
        return self._rate([subject.pooling(self._ids(bag)) for _ in range(CALLS)], bag)

    def sequential_rate(self) -> float:
        """GB/s of reading the whole table in order."""
        started = time.perf_counter()
        self._read(self._table.reshape(-1))
        return self._table.nbytes / (time.perf_counter() - started) / 1e9

    def _case(
        self, case: str, bag: int, prepare: Callable[[Subject, Array], Call | None]
    ) -> Iterator[Row]:
        """Each subject's median rate, the subjects taking turns."""
        rates: dict[str, list[float]] = {}
        for _ in range(self._plan.rounds + 1):
            for name, subject in self._subjects.items():
                prepared = [prepare(subject, self._ids(bag)) for _ in range(CALLS)]
                calls = [call for call in prepared if call is not None]
                if calls:
                    rates.setdefault(name, []).append(self._rate(calls, bag))
        for name, measured in rates.items():
            yield _row(name, case, statistics.median(measured[1:]))

    def _rate(self, calls: Sequence[Call], bag: int) -> float:
        started = time.perf_counter()
        for call in calls:
            call()
        seconds = time.perf_counter() - started
        row_bytes: int = self._table.shape[1] * self._table.itemsize
        return len(calls) * (ROWS_ASKED // bag * bag) * row_bytes / seconds / 1e9

    def _ids(self, bag: int) -> Array:
        return self._rng.integers(0, len(self._table), (ROWS_ASKED // bag, bag))

    def _check(self, bag: int) -> None:
        """Refuse to time a subject whose answer is another."""
        ids = self._ids(bag)
        expected = self._table[ids[:50]].sum(axis=1)
        for name, subject in self._subjects.items():
            answer = np.asarray(subject.pooling(ids)())[:50]
            np.testing.assert_allclose(answer, expected, rtol=1e-4, err_msg=name)


def _row(subject: str, case: str, rate: float) -> Row:
    return Row(subject, case, "rows' bytes per second", "GB/s", rate)


def _claim(name: str, pairs: Paired, to_reach: float, other: str) -> Claim:
    note = f"{pairs.ours:.2f} GB/s against {pairs.theirs:.2f} of {other}"
    return Claim(name, pairs.ratio, to_reach, note=note)


def _notes(plan: Plan, claims: list[Claim]) -> list[str]:
    measured = (
        f"One core; a table of {plan.table_bytes / 2**20:.0f} MiB; about {ROWS_ASKED} ids a call, "
        f"uniform and new for every call; {CALLS} calls a sample; medians."
    )
    notes = [measured, SAME_MEMORY]
    if any(claim.name == "lookup.fp32_vs_sequential_read" and not claim.holds for claim in claims):
        notes.append(WHY_NOT_SEQUENTIAL)
    if any(claim.name in PRECISION_CLAIMS.values() and not claim.holds for claim in claims):
        notes.append(WHY_NOT_TWICE)
    return notes
