"""Values are counted by bounds, whether they come one by one or many at once."""

from __future__ import annotations

import bisect
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.stage_tallies import StageTallies
from shardserve.batching.tallies import Distribution, Tally, exponential

_BOUNDS = exponential(1, 2, 8)
_VALUES = st.lists(st.integers(0, 300), max_size=40)


def _expected(values: list[int]) -> Distribution:
    counts = [0] * (len(_BOUNDS) + 1)
    for value in values:
        counts[bisect.bisect_left(_BOUNDS, value)] += 1
    return Distribution(tuple(counts), sum(values))


@given(one_by_one=_VALUES, at_once=st.lists(_VALUES, max_size=5))
def test_values_one_by_one_and_at_once_are_counted_alike(
    one_by_one: list[int], at_once: list[list[int]]
) -> None:
    tally = Tally(_BOUNDS)
    for value in one_by_one:
        tally.add(value)
    for values in at_once:
        tally.extend(values)
    assert tally.distribution() == _expected([*one_by_one, *itertools.chain(*at_once)])
    assert tally.distribution().count == len(one_by_one) + sum(map(len, at_once))


@given(_VALUES, _VALUES)
def test_distributions_add_up(one: list[int], other: list[int]) -> None:
    assert _expected(one) + _expected(other) == _expected(one + other)


def test_a_tally_keeps_no_more_values_than_it_must() -> None:
    tally = Tally(_BOUNDS)
    for _ in range(100):
        tally.extend(range(100))
    assert tally.distribution().count == 10_000
    assert tally.distribution().total == 100 * sum(range(100))


def test_a_stage_that_pads_tells_how_much_by_the_size_it_pads_to() -> None:
    tallies = StageTallies(pads=True)
    tallies.started([0.001, 0.002], [1, 2], rows=3, padded=4)
    tallies.started([0.0], [4], rows=4, padded=4)
    tallies.started([0.0], [5], rows=5, padded=8)
    found = tallies.distributions()
    assert found.queue_micros.total == pytest.approx(3000)
    assert (found.task_rows.count, found.task_rows.total) == (4, 12)
    assert (found.batch_rows.count, found.batch_rows.total) == (3, 16)
    assert {size: d.total for size, d in found.padding_rows.items()} == {4: 1, 8: 3}


def test_a_stage_that_does_not_pad_has_no_padding() -> None:
    tallies = StageTallies(pads=False)
    for rows in range(2000):
        tallies.started([0.0], [rows], rows, rows)
    assert tallies.distributions().padding_rows == {}
    assert tallies.distributions().batch_rows.count == 2000
