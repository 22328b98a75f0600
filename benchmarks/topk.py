"""The 100 best of 10 million items by inner product: sharded, and in one process by others.

Everything is bound to one core, shards and router too: a figure is what one core does. Ours are 4
shard processes, asked through the router's own splitting, streams and merging, under the layout
that the planner gives a scored table. Queries are new for every call.

`--set items=N` changes the items (10,000,000), `--set rounds=N` the samples per figure (5).
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.lookup import one_core
from benchmarks.report import Claim, Options, Report, Row, missing, paired_ratio
from benchmarks.topk_peers import FAISS, FAISS_BLAS, Search, peers
from benchmarks.topk_shards import DIM, SHARDS, K, items_of, sharded

Array = npt.NDArray[Any]

OURS = "shardserve, 4 shards"
CLAIMS = {
    "topk.rate_per_core_vs_faiss": FAISS,
    "topk.rate_per_core_vs_faiss_blas": FAISS_BLAS,
}
BATCHES = (1, 16, 64)
CLAIMED = 64
NOTE = (
    "One core for all of a subject's processes; BLAS and OpenMP with one thread. faiss 1.15 scores "
    "such batches query by query as it is installed; told to use BLAS from 20 queries on, as its "
    "default once was, it is several times as fast. TensorFlow writes all scores, [batch, items], "
    "and then picks. Items and queries are random."
)


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    items: int
    rounds: int
    batches: tuple[int, ...]


def run(options: Options) -> Report:
    """The benchmark. Peers that are not installed are rows that say so."""
    items = int(options.settings.get("items", 100_000 if options.quick else 10_000_000))
    rounds = int(options.settings.get("rounds", 3 if options.quick else 5))
    plan = Plan(items // SHARDS * SHARDS, rounds, BATCHES)
    with ExitStack() as stack:
        stack.enter_context(one_core())
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        rows: list[Row] = []
        subjects = _peers(plan.items, rows)
        subjects[OURS] = stack.enter_context(sharded(loop, plan.items))
        bench = _Bench(plan, subjects)
        rows += bench.rows()
        return Report("topk", rows, list(bench.claims()), [_setup(plan), NOTE])


def _peers(items: int, rows: list[Row]) -> dict[str, Search]:
    found, absent = peers(items_of(items), K)
    rows += [missing(name, why) for name, why in absent.items()]
    return found


class _Bench:
    def __init__(self, plan: Plan, subjects: dict[str, Search]) -> None:
        self._plan = plan
        self._subjects = subjects
        self._rng = np.random.default_rng(1)

    def rows(self) -> Iterator[Row]:
        """Every subject's median rate, batch by batch, the subjects taking turns."""
        for batch in self._plan.batches:
            self._check(batch)
            rates: dict[str, list[float]] = {name: [] for name in self._subjects}
            for _ in range(self._plan.rounds):
                for name in self._subjects:
                    rates[name].append(self.rate(name, batch))
            for name, measured in rates.items():
                median = statistics.median(measured)
                yield Row(name, f"batch {batch}", "queries per second of a core", "1/s", median)

    def claims(self) -> Iterator[Claim]:
        """Ours against faiss as it is installed, and with BLAS for batches, each in turns."""
        for name, peer in CLAIMS.items():
            if peer not in self._subjects:
                yield Claim(name, None, 1.0, note="faiss-cpu is not installed")
                continue
            pairs = paired_ratio(
                partial(self.rate, OURS, CLAIMED),
                partial(self.rate, peer, CLAIMED),
                2 * self._plan.rounds,
            )
            note = (
                f"{pairs.ours:.1f} queries a second of a core against {pairs.theirs:.1f}, batches "
                f"of {CLAIMED}; ratios {min(pairs.ratios):.2f} to {max(pairs.ratios):.2f}"
            )
            yield Claim(name, pairs.ratio, 1.0, note=note)

    def rate(self, name: str, batch: int) -> float:
        """Queries a second of one call."""
        queries = self._queries(batch)
        started = time.perf_counter()
        self._subjects[name](queries)
        return batch / (time.perf_counter() - started)

    def _queries(self, batch: int) -> Array:
        return self._rng.standard_normal((batch, DIM), np.float32)

    def _check(self, batch: int) -> None:
        """Refuse to time a subject whose answer is another; TensorFlow's is there always."""
        queries = self._queries(batch)
        answers = {name: search(queries) for name, search in self._subjects.items()}
        expected = next(iter(answers.values()))
        for name, (values, indices) in answers.items():
            np.testing.assert_allclose(values, expected[0], rtol=1e-4, err_msg=name)
            # Scores within rounding of each other may change places.
            assert np.mean(indices == expected[1]) > 0.99, name


def _setup(plan: Plan) -> str:
    return (
        f"{plan.items:,} items x {DIM} float32 ({plan.items * DIM * 4 / 2**30:.2f} GiB), "
        f"top {K}; medians of {plan.rounds}; a claim's ratio is the median of "
        f"{2 * plan.rounds} pairs."
    )
