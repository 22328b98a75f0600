"""Which runs may take place on the event loop, by what those before took."""

from __future__ import annotations

from itertools import cycle, islice, pairwise
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.router.run_times import (
    BRIEF_SECONDS,
    ENOUGH_RUNS,
    FORGIVEN_AFTER,
    LEAST_AWAY,
    LONG_SECONDS,
    MAX_SHAPES,
    MOST_AWAY,
    Runs,
    RunTimes,
)

QUICK = BRIEF_SECONDS / 3


def runs_of(times: RunTimes, size: int = 1) -> Runs:
    runs = times.of([np.empty(size, np.float32)])
    assert runs is not None
    return runs


def known_as_brief(times: RunTimes, size: int = 1) -> Runs:
    runs = runs_of(times, size)
    for _ in range(ENOUGH_RUNS):
        runs.on_thread(QUICK, QUICK)
    return runs


def step(runs: Runs, *, here: float, own: float = QUICK, passed: float = QUICK) -> bool:
    """One more run: whether it was on the loop, where it took `here`."""
    was_here = runs.is_brief
    if was_here:
        runs.on_loop(here)
    else:
        runs.on_thread(own, passed)
    return was_here


def test_enough_brief_runs_make_a_shape_brief_and_no_other() -> None:
    times = RunTimes()
    runs = runs_of(times)
    for _ in range(ENOUGH_RUNS):
        assert not runs.is_brief
        runs.on_thread(QUICK, QUICK)
    assert runs.is_brief
    assert not runs_of(times, 2).is_brief


def test_a_first_run_that_takes_long_is_made_up_for() -> None:
    runs = runs_of(RunTimes())
    runs.on_thread(1.0, 1.0)
    assert any(step(runs, here=QUICK) for _ in range(20))


@given(st.lists(st.floats(1.01, 1e5), min_size=1, max_size=50))
@settings(max_examples=20)
def test_what_waits_for_other_threads_is_not_brief_however_little_its_own_does(
    waits: list[float],
) -> None:
    runs = runs_of(RunTimes())
    for wait in waits:
        runs.on_thread(QUICK, wait * BRIEF_SECONDS)
        assert not runs.is_brief


def test_waiting_for_a_core_now_and_then_does_not_make_a_stage_long() -> None:
    runs = runs_of(RunTimes())
    passed = cycle([QUICK, 4e-3, 2e-3])
    for wait in islice(passed, 3 * ENOUGH_RUNS):
        runs.on_thread(QUICK, wait)
    assert runs.is_brief


def test_one_long_run_bars_all_shapes_of_its_stage() -> None:
    times = RunTimes()
    first, second = known_as_brief(times, 1), known_as_brief(times, 2)
    first.on_loop(LONG_SECONDS * 1.01)
    assert not first.is_brief
    assert not second.is_brief
    for _ in range(LEAST_AWAY):
        assert not step(second, here=QUICK)
    assert second.is_brief
    assert not first.is_brief


def test_runs_that_turn_slow_one_after_the_other_go_back_to_threads() -> None:
    runs = known_as_brief(RunTimes())
    found = [step(runs, here=LONG_SECONDS / 2) for _ in range(20)]
    assert 1 < sum(found) < 10


def test_shapes_at_the_edge_of_being_brief_do_not_come_and_go() -> None:
    runs = runs_of(RunTimes())
    edge = BRIEF_SECONDS
    found = [step(runs, here=edge * 1.2, own=edge, passed=edge) for _ in range(100)]
    assert found == [False] * ENOUGH_RUNS + [True] * 97


def test_a_stage_that_is_long_only_on_the_loop_is_there_ever_more_seldom() -> None:
    runs = runs_of(RunTimes())
    found = [step(runs, here=20e-3) for _ in range(100_000)]
    at = [number for number, here in enumerate(found) if here]
    assert sum(found[:1000]) <= 5
    assert len(at) <= 14
    away = [after - before for before, after in pairwise(at)]
    assert away == sorted(away)
    assert max(away) <= MOST_AWAY + 1


@given(st.integers(1, 3 * FORGIVEN_AFTER), st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_long_runs_are_few_however_often_the_loop_makes_them_long(one_in: int, seed: int) -> None:
    """Those that it takes for the stage to be away at the most, and one in so many."""
    draw = Random(seed).random
    runs = runs_of(RunTimes())
    count, long = 30_000, 0
    for _ in range(count):
        here = 20e-3 if draw() < 1 / one_in else QUICK
        long += step(runs, here=here) and here > QUICK
    assert long <= 10 + count / FORGIVEN_AFTER + count / MOST_AWAY


def test_brief_runs_on_the_loop_make_up_for_long_ones() -> None:
    def away() -> int:
        runs.on_loop(LONG_SECONDS * 2)
        return sum(not here for here in iter(lambda: step(runs, here=QUICK), True))

    runs = known_as_brief(RunTimes())
    assert [away(), away(), away()] == [LEAST_AWAY, 2 * LEAST_AWAY, 4 * LEAST_AWAY]
    for _ in range(4 * FORGIVEN_AFTER):
        assert step(runs, here=QUICK)
    assert away() == LEAST_AWAY


def test_as_many_shapes_as_clients_think_of_are_not_kept() -> None:
    times = RunTimes()
    first = runs_of(times, 0)
    assert runs_of(times, 0) is first
    for size in range(1, MAX_SHAPES + 1):
        runs_of(times, size)
    assert runs_of(times, 0) is not first


def test_shapes_that_are_forgotten_do_not_bring_a_stage_back() -> None:
    times = RunTimes()
    known_as_brief(times).on_loop(20e-3)
    for size in range(2, MAX_SHAPES + 2):
        runs_of(times, size)
    assert not known_as_brief(times).is_brief
