"""Values are counted by bounds, whether they come one by one or many at once."""

from __future__ import annotations

import bisect
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.stage_tallies import StageTallies
from shardserve.batching.tallies import Distribution, Tally, exponential
from shardserve.batching.tasks import Task

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
        tally.extend(list(map(float, values)))
    assert tally.distribution() == _expected([*one_by_one, *itertools.chain(*at_once)])
    assert tally.distribution().count == len(one_by_one) + sum(map(len, at_once))


@given(st.integers(0, 300), st.integers(1, 50))
def test_one_value_many_times_counts_as_often(value: int, times: int) -> None:
    tally = Tally(_BOUNDS)
    tally.add(value, times)
    assert tally.distribution() == _expected([value] * times)


@given(_VALUES, _VALUES)
def test_distributions_add_up(one: list[int], other: list[int]) -> None:
    assert _expected(one) + _expected(other) == _expected(one + other)


def _batch(*tasks: tuple[float, int]) -> list[Task[None]]:
    """Tasks by when they were queued, and their rows."""
    return [Task(None, rows, queued=queued) for queued, rows in tasks]


def test_a_stage_that_pads_tells_how_much_by_the_size_it_pads_to() -> None:
    tallies = StageTallies(pads=True)
    tallies.started(_batch((1.0, 1), (1.001, 2)), rows=3, padded=4, now=1.002)
    tallies.started(_batch((2.0, 4)), rows=4, padded=4, now=2.0)
    tallies.started(_batch((3.0, 5)), rows=5, padded=8, now=3.0)
    found = tallies.distributions()
    assert found.queue_micros.total == pytest.approx(3000)
    assert tallies.queue_seconds == pytest.approx(0.003)
    assert (found.task_rows.count, found.task_rows.total) == (4, 12)
    assert (found.batch_rows.count, found.batch_rows.total) == (3, 16)
    assert {size: d.total for size, d in found.padding_rows.items()} == {4: 1, 8: 3}


def test_tasks_of_one_row_are_counted_as_such() -> None:
    tallies = StageTallies(pads=False)
    tallies.started(_batch((0.0, 1), (0.0, 1), (0.0, 1)), rows=3, padded=3, now=0.0)
    found = tallies.distributions()
    assert (found.task_rows.counts[0], found.task_rows.count, found.task_rows.total) == (3, 3, 3)


def test_a_stage_that_does_not_pad_has_no_padding() -> None:
    tallies = StageTallies(pads=False)
    for rows in range(1, 2001):
        tallies.started(_batch((0.0, rows)), rows, rows, 0.0)
    assert tallies.distributions().padding_rows == {}
    assert tallies.distributions().batch_rows.count == 2000
