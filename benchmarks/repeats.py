"""Ids that a request repeats: each asked for as often as it is named, or once, or as is decided.

Every process is bound to one core, so a figure is what one core spends on a lookup in all: router,
wire and shards. The table takes 1 GiB; ids are new for every call, and Zipf with the exponents of
`workloads.ALPHAS` (0 is uniform). A row's value is how many times as fast the decision is as asking
for every id; its note has all three, in ns an id.

`--set rounds=N` changes the samples per figure (7).
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.lookup import one_core
from benchmarks.repeats_subjects import (
    EACH,
    ONCE,
    Lookups,
    gathers,
    mapped,
    pools,
)
from benchmarks.report import Claim, Options, Report, Row, paired_ratio
from benchmarks.workloads import ALPHAS, scatter, zipf_ranks

Array = npt.NDArray[Any]

DECIDED = "as decided"
#: Where rows come from: how many shard processes, none for a shard in the router's own.
PLACES = {"4 shards": 4, "1 shard": 1, "in process": 0}
#: (columns, ids) of a lookup.
SIZES = ((16, 20_000), (64, 2_000), (64, 20_000), (64, 160_000), (128, 20_000))
CLAIMED = ("4 shards", 64, 160_000)
#: What is claimed at which exponent: the ratio to asking for every id.
CLAIMS = {"repeats.zipf_1.1_vs_each": (1.1, 1.5), "repeats.uniform_vs_each": (0.0, 0.95)}
MAPPED = (
    "The mapped tier reads rows that the system has in its cache, without a cache of its own; it "
    "decides while it reads. Sums are made of rows in memory, as they come."
)
NOTES = (
    "One core for all processes; a table of 1 GiB of float32; medians; ids new for every call.",
    MAPPED,
)


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    table_bytes: int
    rounds: int
    sizes: tuple[tuple[int, int], ...]


def run(options: Options) -> Report:
    """The benchmark."""
    quick = options.quick
    rounds = int(options.settings.get("rounds", 3 if quick else 7))
    plan = Plan(1 << 26 if quick else 1 << 30, rounds, ((64, 2_000),) if quick else SIZES)
    rows: list[Row] = []
    claims: list[Claim] = []
    with one_core(), ExitStack() as stack:
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        for dim in sorted({dim for dim, _ in plan.sizes}):
            for place, shards in PLACES.items():
                with gathers(loop, plan.table_bytes, dim, shards) as subject:
                    bench = _Bench(plan, subject)
                    rows += bench.rows(f"gather, {place}", dim)
                    if (place, dim) == CLAIMED[:2]:
                        claims += bench.claims(max(ids for d, ids in plan.sizes if d == dim))
            for name, subject_of in (("sum, in memory", pools), ("gather, mapped", mapped)):
                with subject_of(plan.table_bytes, dim) as subject:
                    rows += _Bench(plan, subject).rows(name, dim)
    return Report("repeats", rows, claims, NOTES)


class _Bench:
    def __init__(self, plan: Plan, subject: Lookups) -> None:
        self._plan = plan
        self._subject = subject
        self._rng = np.random.default_rng(0)

    def rows(self, what: str, dim: int) -> Iterator[Row]:
        """The decision against asking for each, for every number of ids and exponent."""
        for ids in (ids for columns, ids in self._plan.sizes if columns == dim):
            for alpha in ALPHAS:
                yield self._row(f"{what}, dim {dim}, {ids:,} ids, Zipf {alpha}", ids, alpha)

    def claims(self, ids: int) -> Iterator[Claim]:
        """The decision against asking for each, in turns."""
        for name, (alpha, to_reach) in CLAIMS.items():
            pairs = paired_ratio(
                partial(self._rate, DECIDED, ids, alpha),
                partial(self._rate, EACH, ids, alpha),
                4 * self._plan.rounds,
            )
            note = f"{ids:,} ids of {CLAIMED[1]} columns from {CLAIMED[0]}, Zipf {alpha}"
            yield Claim(name, pairs.ratio, to_reach, note=note)

    def _row(self, case: str, ids: int, alpha: float) -> Row:
        self._check(ids, alpha)
        seconds: dict[str, list[float]] = {EACH: [], ONCE: [], DECIDED: []}
        for _ in range(self._plan.rounds):
            for name, samples in seconds.items():
                samples.append(self._seconds(name, ids, alpha))
        spent = {name: statistics.median(samples) / ids * 1e9 for name, samples in seconds.items()}
        figures = ", ".join(f"{name} {value:.0f}" for name, value in spent.items())
        note = f"{self._repeated(ids, alpha):.0%} repeated; ns an id: {figures}"
        return Row(DECIDED, case, "rate over each", "times", spent[EACH] / spent[DECIDED], note)

    def _rate(self, name: str, count: int, alpha: float) -> float:
        return count / self._seconds(name, count, alpha)

    def _seconds(self, name: str, count: int, alpha: float) -> float:
        ids = self._ids(count, alpha)
        lookup = self._lookup(name)
        started = time.perf_counter()
        lookup(ids)
        return time.perf_counter() - started

    def _lookup(self, name: str) -> Callable[[Array], Array]:
        subjects: Mapping[str, Callable[[Array], Array]] = {
            EACH: self._subject.each,
            ONCE: self._subject.once,
            DECIDED: self._subject.decided,
        }
        return subjects[name]

    def _repeated(self, count: int, alpha: float) -> float:
        return 1 - len(np.unique(self._ids(count, alpha))) / count

    def _ids(self, count: int, alpha: float) -> Array:
        rows = self._subject.rows
        return scatter(zipf_ranks(self._rng, rows, count, alpha), rows)

    def _check(self, count: int, alpha: float) -> None:
        """Refuse to time answers that are not the same to the bit."""
        ids = self._ids(count, alpha)
        expected = self._subject.each(ids)
        for name in (ONCE, DECIDED):
            np.testing.assert_array_equal(self._lookup(name)(ids), expected, err_msg=name)
