"""Queries and arrivals to load a server with: everything drawn in advance, by seed, in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.shards.rows import hash_multiplier

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: Examples in a query, as MLPerf's DLRM-v2 aggregates them, in twentieths. Their mean is 270.
MLPERF_SIZES = (100,) * 2 + (200,) * 12 + (300,) * 2 + (400, 500, 600, 700)
#: The skews that published generators call none, long, medium and short tail.
ALPHAS = (0.0, 0.9, 1.1, 1.3)


@dataclass(frozen=True)
class DlrmQueries:
    """Queries to a DLRM whose table t has `rows[t]` rows and takes `hots[t]` ids per example.

    Ids are Zipf with exponent `alpha` (0 is uniform), the hot ones scattered over the table.
    Query n is a function of the seed and n alone, so queries can be drawn in any order.
    """

    rows: tuple[int, ...]
    hots: tuple[int, ...]
    dense: int = 13
    alpha: float = 0.0
    seed: int = 0

    def query(self, number: int, size: int = 1) -> dict[str, Array]:
        """The inputs of `size` examples, named as the example model names them.

        `dense` is float32 [size, dense], `sparse_T` int64 [size, hots[T]].
        """
        rng = np.random.default_rng([self.seed, number])
        inputs: dict[str, Array] = {"dense": rng.random((size, self.dense), dtype=np.float32)}
        for table, (rows, hot) in enumerate(zip(self.rows, self.hots, strict=True)):
            ids = scatter(zipf_ranks(rng, rows, size * hot, self.alpha), rows)
            inputs[f"sparse_{table}"] = ids.reshape(size, hot)
        return inputs

    def queries(self, sizes: IntArray) -> Iterator[dict[str, Array]]:
        """Queries 0, 1, ... of the sizes given."""
        for number, size in enumerate(sizes):
            yield self.query(number, int(size))


def mlperf_sizes(count: int, seed: int) -> IntArray:
    """`count` query sizes drawn from `MLPERF_SIZES`."""
    return np.random.default_rng(seed).choice(np.array(MLPERF_SIZES, np.int64), count)


def poisson_arrivals(rate: float, seconds: float, seed: int) -> FloatArray:
    """Times in [0, seconds) at which to send: a Poisson process of `rate` per second, ascending.

    Given their number, the arrivals of such a process are uniform over the interval.
    """
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0.0, seconds, rng.poisson(rate * seconds)))


def zipf_ranks(rng: np.random.Generator, rows: int, count: int, alpha: float) -> IntArray:
    """`count` ranks in [0, rows), rank k with probability proportional to (k + 1) ** -alpha.

    Rejection-inversion (W. Hörmann and G. Derflinger, "Rejection-inversion to generate variates
    from monotone discrete distributions", 1996): no table of `rows` entries, exact at any alpha.
    """
    if alpha == 0.0:
        return rng.integers(0, rows, count, dtype=np.int64)
    ranks = np.empty(count, np.int64)
    drawn = 0
    while drawn < count:
        accepted = _draw(rng, rows, count - drawn, alpha)
        ranks[drawn : drawn + len(accepted)] = accepted
        drawn += len(accepted)
    return ranks


def _draw(rng: np.random.Generator, rows: int, count: int, alpha: float) -> IntArray:
    # The hat over rank x (from 1) is x ** -alpha over [x - 1/2, x + 1/2]; that of rank 1 is cut at
    # its left so that it holds exactly the probability of rank 1.
    low = _area(np.float64(1.5), alpha) - 1.0
    high = _area(np.float64(rows + 0.5), alpha)
    area = rng.uniform(low, high, count)
    rank: FloatArray = np.clip(np.rint(_area_inverse(area, alpha)), 1, rows)
    accepted = area >= _area(rank + 0.5, alpha) - rank**-alpha
    ranks: IntArray = rank[accepted].astype(np.int64) - 1
    return ranks


def _area(x: Any, alpha: float) -> Any:
    """The integral of t ** -alpha from 1 to x."""
    return np.log(x) if alpha == 1.0 else (x ** (1.0 - alpha) - 1.0) / (1.0 - alpha)


def _area_inverse(area: FloatArray, alpha: float) -> FloatArray:
    if alpha == 1.0:
        return np.exp(area)
    return np.power(1.0 + area * (1.0 - alpha), 1.0 / (1.0 - alpha))


def scatter(ranks: IntArray, rows: int) -> IntArray:
    """Ids for ranks: a bijection of [0, rows) under which neighbours in rank lie far apart.

    Where ids are assigned as things appear or by hashing, the hot ones are spread so. `rows` is at
    most 2**31, so that the product fits 63 bits.
    """
    return ranks * _multiplier(rows) % rows


def _multiplier(rows: int) -> int:
    # Another than the row_hash layout's own, whose inverse would line the hot ids up again.
    return hash_multiplier(rows) if rows < 3 else pow(hash_multiplier(rows), 3, rows)
