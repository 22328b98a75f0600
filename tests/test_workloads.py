from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.workloads import (
    ALPHAS,
    DlrmQueries,
    mlperf_sizes,
    poisson_arrivals,
    scatter,
    zipf_ranks,
)


@pytest.mark.parametrize("alpha", [*ALPHAS, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 7, 300])
def test_ranks_fall_as_zipf_says(alpha: float, rows: int) -> None:
    count = 100_000
    expected = np.arange(1, rows + 1) ** -alpha
    expected *= count / expected.sum()
    drawn = np.bincount(zipf_ranks(np.random.default_rng(5), rows, count, alpha), minlength=rows)
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    assert chi_square <= rows + 5 * np.sqrt(2 * rows)


def test_skew_leaves_few_unique_ids() -> None:
    ranks = zipf_ranks(np.random.default_rng(1), 40_000_000, 200_000, 1.2)
    assert len(np.unique(ranks)) / len(ranks) == pytest.approx(0.15, abs=0.03)


@given(rows=st.integers(1, 5000))
@settings(max_examples=30, deadline=None)
def test_scattering_is_a_bijection(rows: int) -> None:
    ids = scatter(np.arange(rows, dtype=np.int64), rows)
    assert sorted(ids) == list(range(rows))


@given(number=st.integers(0, 1000), size=st.integers(1, 40), alpha=st.sampled_from(ALPHAS))
@settings(max_examples=30, deadline=None)
def test_a_query_is_a_function_of_its_seed_and_number(number: int, size: int, alpha: float) -> None:
    queries = DlrmQueries(rows=(1, 3, 1000), hots=(1, 2, 20), alpha=alpha, seed=7)
    query, again = queries.query(number, size), queries.query(number, size)
    assert list(query) == ["dense", "sparse_0", "sparse_1", "sparse_2"]
    assert query["dense"].shape == (size, 13)
    for table, (rows, hot) in enumerate(zip(queries.rows, queries.hots, strict=True)):
        ids = query[f"sparse_{table}"]
        assert ids.shape == (size, hot)
        assert ids.dtype == np.int64
        assert ids.min() >= 0
        assert ids.max() < rows
    assert all(np.array_equal(query[name], again[name]) for name in query)


def test_sizes_average_to_mlperfs_270() -> None:
    assert mlperf_sizes(20_000, seed=0).mean() == pytest.approx(270, abs=5)


def test_arrivals_ascend_at_the_rate_asked_for() -> None:
    times = poisson_arrivals(rate=200.0, seconds=50.0, seed=3)
    assert len(times) == pytest.approx(10_000, rel=0.03)
    assert times.min() >= 0
    assert times.max() < 50
    assert (np.diff(times) >= 0).all()
    assert np.diff(times).std() == pytest.approx(1 / 200, rel=0.05)
