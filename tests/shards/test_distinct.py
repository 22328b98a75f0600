"""The different ids of an array: in order, and each where it stands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.shards.distinct import LEAST_SAMPLE, DistinctFinder

FINDER = DistinctFinder()
ANY_ID = st.integers(-(1 << 63), (1 << 63) - 1)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.lists(ANY_ID, max_size=50), st.lists(st.integers(0, 9), max_size=3000)))
def test_values_are_in_the_order_of_their_first_appearance(ids):
    found = FINDER.find(np.array(ids, np.int64), 0.0)
    assert found is not None
    assert found.values.tolist() == list(dict.fromkeys(ids))
    assert found.values[found.places].tolist() == ids


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), size=st.integers(1, 20_000), distinct=st.integers(1, 40_000))
def test_any_number_of_ids_with_any_number_of_repeats(seed, size, distinct):
    ids = np.random.default_rng(seed).integers(0, distinct, size)
    found = FINDER.find(ids, 0.0)
    assert found is not None
    np.testing.assert_array_equal(found.values[found.places], ids)
    assert len(np.unique(found.values)) == len(found.values)


def test_too_few_repeats_among_the_first_ids_end_the_search():
    ids = np.concatenate([np.arange(LEAST_SAMPLE), np.zeros(LEAST_SAMPLE)]).astype(np.int64)
    assert FINDER.find(ids, 0.1) is None
    assert FINDER.find(ids[::-1].copy(), 0.1) is not None


def test_few_ids_are_all_looked_at():
    assert FINDER.find(np.array([1, 2, 3, 1]), 0.25) is not None
    assert FINDER.find(np.array([1, 2, 3, 4]), 0.25) is None


def test_a_table_that_degenerates_is_given_up(monkeypatch):
    ids = np.arange(10_000)
    assert FINDER.find(ids, 0.0) is not None
    monkeypatch.setattr("shardserve.shards.distinct.PROBES", 0)
    assert FINDER.find(ids, 0.0) is None


@settings(max_examples=100, deadline=None)
@given(factor=st.integers(0, 1 << 62), step=st.integers(1, 1 << 40), size=st.integers(1, 5_000))
def test_whatever_the_factor_neighbours_are_spread(factor, step, size):
    finder = DistinctFinder()
    finder._multiplier = 2 * factor + 1
    assert finder.find(np.arange(size) * step, 0.0) is not None


def test_no_two_finders_scatter_alike():
    assert DistinctFinder()._multiplier != DistinctFinder()._multiplier


@pytest.mark.parametrize("repeats", [0.0, 0.5, 1.0])
def test_the_part_that_is_repeated_decides(repeats):
    fresh = round(4000 * (1 - repeats))
    ids = np.random.default_rng(0).permutation(
        np.concatenate([np.arange(fresh), np.zeros(4000 - fresh, np.int64)])
    )
    assert (FINDER.find(ids, 0.25) is None) == (repeats < 0.25)
