"""One request over many tables: ours, and FBGEMM's TBE, which has all of them in one call.

The tables, and the ids that an example has in each, are those of MLPerf's DLRM-v2, all their rows
divided by one factor; ours answer as a shard that has all of the tables does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.lookup_rows import TOLERANCE, Tbe, store_of
from benchmarks.lookup_subjects import Call
from benchmarks.report import Row, missing
from benchmarks.workloads import scatter, zipf_ranks
from examples.dlrm import DlrmConfig, dlrm_config
from shardserve.shards.messages import LookupRequest, Op, Part
from shardserve.shards.shard import Shard
from shardserve.shards.storage import Precision

Array = npt.NDArray[Any]

PRECISIONS = (Precision.FLOAT32, Precision.FLOAT16, Precision.INT8)
ALPHAS = (0.0, 1.1)
#: Examples in a request: one, and MLPerf's mean.
EXAMPLES = (1, 270)
#: Ids of a sample, at least.
SAMPLE_IDS = 250_000


def measure(table_bytes: int, rounds: int) -> Iterator[Row]:
    """Every precision, each with tables that take about `table_bytes` as float32."""
    whole = dlrm_config(1)
    config = dlrm_config(-(-whole.table_bytes // table_bytes))
    for precision in PRECISIONS:
        yield from _Bench(precision, config, rounds).rows()


class _Bench:
    def __init__(self, precision: Precision, config: DlrmConfig, rounds: int) -> None:
        self._precision = precision
        self._config = config
        self._rounds = rounds
        self._rng = np.random.default_rng(1)
        self._shard = Shard(
            [store_of(precision, rows, config.dim, t) for t, rows in enumerate(config.rows)]
        )
        self._peer: Tbe | None = None
        self._missing = ""
        try:
            self._peer = Tbe(precision, config.rows, config.dim)
        except ImportError as error:
            self._missing = f"not installed: {error}"

    def rows(self) -> Iterator[Row]:
        """Both subjects' rates, in turns."""
        if self._peer is None:
            yield missing("FBGEMM TBE, many tables", self._missing)
        for examples in EXAMPLES:
            for alpha in ALPHAS:
                self._check(examples, alpha)
                for subject, rate in self._rates(examples, alpha).items():
                    case = (
                        f"{len(self._config.rows)} tables, {self._precision}, dim "
                        f"{self._config.dim}, {examples} examples, "
                        + (f"Zipf {alpha}" if alpha else "uniform")
                    )
                    yield Row(subject, case, "rows", "million/s", rate)

    def _rates(self, examples: int, alpha: float) -> dict[str, float]:
        subjects: dict[str, Callable[[list[Array]], Call]] = {"shardserve": self._ours}
        if self._peer is not None:
            subjects["FBGEMM TBE"] = self._theirs
        rates: dict[str, list[float]] = {name: [] for name in subjects}
        for _ in range(self._rounds + 1):
            for name, prepare in subjects.items():
                rates[name].append(self._rate(prepare, examples, alpha))
        return {name: statistics.median(measured[1:]) for name, measured in rates.items()}

    def _rate(self, prepare: Callable[[list[Array]], Call], examples: int, alpha: float) -> float:
        """Millions of rows per second of one sample."""
        per_call = examples * sum(self._config.hots)
        calls = [prepare(self._ids(examples, alpha)) for _ in range(max(1, SAMPLE_IDS // per_call))]
        started = time.perf_counter()
        for call in calls:
            call()
        return len(calls) * per_call / (time.perf_counter() - started) / 1e6

    def _ids(self, examples: int, alpha: float) -> list[Array]:
        """Each table's ids, [examples, ids of an example], as the router sends them."""
        return [
            scatter(zipf_ranks(self._rng, rows, examples * hot, alpha), rows)
            .reshape(examples, hot)
            .astype(np.int32)
            for rows, hot in zip(self._config.rows, self._config.hots, strict=True)
        ]

    def _ours(self, ids: list[Array]) -> Call:
        parts = tuple(
            Part(t, Op.POOL, each.reshape(-1), _offsets(each), None) for t, each in enumerate(ids)
        )
        request = LookupRequest(parts)
        return lambda: self._shard.execute(request)

    def _theirs(self, ids: list[Array]) -> Call:
        assert self._peer is not None
        sizes = np.concatenate([np.repeat(each.shape[1], len(each)) for each in ids])
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return self._peer.pooling(np.concatenate([each.reshape(-1) for each in ids]), offsets)

    def _check(self, examples: int, alpha: float) -> None:
        """Refuse to time a subject whose answer is another."""
        if self._peer is not None:
            ids = self._ids(examples, alpha)
            np.testing.assert_allclose(
                np.asarray(self._theirs(ids)()),
                np.concatenate(self._ours(ids)(), axis=1),
                atol=TOLERANCE[self._precision] * max(self._config.hots) / 20,
                rtol=0,
            )


def _offsets(ids: Array) -> Array:
    return np.arange(0, ids.size + 1, ids.shape[1], dtype=np.int32)
