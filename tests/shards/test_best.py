"""The best of many scores, in TensorFlow's order, however they are divided."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardserve.shards.best import Best, Picker, Totals, in_order, merged, unpack


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Scores [n, classes], many of them equal, some no numbers; and a k of at most the classes."""
    n, classes = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    kinds = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, np.inf, -np.inf, np.nan])
    values = draw(st.lists(kinds | st.floats(width=32), min_size=n * classes, max_size=n * classes))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return np.array(values, dtype).reshape(n, classes), draw(st.integers(1, classes))


def naive(row: np.ndarray, k: int) -> list[int]:
    ranks = np.where(np.isnan(row), -np.inf, row)
    return sorted(range(len(row)), key=lambda i: (-ranks[i], i))[:k]


@settings(deadline=None)
@given(scored(), st.lists(st.integers(1, 30)))
@example((np.arange(30, dtype=np.float32)[None], 2), [16, 20])
def test_the_best_of_chunks_are_the_best_of_all(case, cuts):
    scores, k = case
    classes = scores.shape[1]
    edges = sorted({0, classes, *(cut for cut in cuts if max(k, classes / 2) <= cut < classes)})
    picker = Picker(k)
    for start, stop in pairwise(edges):
        picker.add(np.ascontiguousarray(scores[:, start:stop].T), start)
    values, indices = picker.best()
    assert indices.tolist() == [naive(row, k) for row in scores]
    np.testing.assert_array_equal(values, np.take_along_axis(scores, indices, axis=1))


def test_rising_scores_are_picked_too():
    scores = np.tile(np.arange(50_000, dtype=np.float32), (2, 1))
    picker = Picker(10)
    for start in range(0, 50_000, 5000):
        picker.add(np.ascontiguousarray(scores[:, start : start + 5000].T), start)
    assert picker.best()[1].tolist() == [list(range(49_999, 49_989, -1))] * 2


def best_of(scores: np.ndarray, k: int, numbers: np.ndarray, *, totals: bool = False) -> Best:
    local, places = in_order(scores, np.tile(numbers, (len(scores), 1)), k)
    return Best(local, places, Totals.of(scores.T) if totals else None)


@settings(deadline=None)
@given(scored(), st.integers(1, 4))
def test_the_best_of_parts_are_the_best_of_all(case, count):
    scores, k = case
    numbers = np.arange(scores.shape[1])
    parts = [
        best_of(scores[:, part::count], k, numbers[part::count])
        for part in range(min(count, scores.shape[1]))
    ]
    found = merged(parts, k)
    assert found.indices.tolist() == [naive(row, k) for row in scores]


@settings(deadline=None)
@given(scored(), st.booleans())
def test_what_is_packed_is_unpacked(case, totals):
    scores, k = case
    best = best_of(scores, k, np.arange(scores.shape[1]), totals=totals)
    packed = best.pack()
    assert packed.dtype == scores.dtype
    found = unpack(packed, scores.shape[1], k, totals=totals)
    assert found.values.tobytes() == best.values.tobytes()
    assert found.indices.tolist() == best.indices.tolist()
    assert (found.totals is not None) == totals
    if totals:
        np.testing.assert_array_equal(found.totals.peaks, best.totals.peaks)
        np.testing.assert_allclose(found.totals.sums, best.totals.sums, rtol=1e-6)


@pytest.mark.parametrize(
    ("packed", "count", "totals"),
    [
        (np.zeros((3, 5), np.float32), 9, False),
        (np.zeros(4, np.float32), 9, False),
        (np.zeros((3, 4), np.int64), 9, False),
        (np.zeros((3, 4), np.float32), 9, True),
        (np.array([[0, 0, 9, 0]], np.int32).view(np.float32), 9, False),
        (np.array([[0, 0, -1, 0]], np.int64).view(np.float64), 9, False),
    ],
)
def test_what_is_no_packed_answer_is_refused(packed, count, totals):
    with pytest.raises(ValueError, match=r"best scores|a class that is not in"):
        unpack(packed, count, 2, totals=totals)


def test_totals_of_parts_are_the_totals_of_all():
    scores = np.random.default_rng(0).normal(scale=30, size=(40, 5))
    parts = [Totals.of(scores[:7]), Totals.of(scores[7:20]), Totals.of(scores[20:])]
    whole, found = Totals.of(scores), Totals.merged(parts)
    np.testing.assert_array_equal(found.peaks, whole.peaks)
    np.testing.assert_allclose(found.sums, whole.sums, rtol=1e-12)
