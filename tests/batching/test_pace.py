"""What a stage's batches are expected to take, and how many a device has in flight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.pace import MAX_AGE, InFlight, Pace


def seen(*batches: tuple[int, float], times: int = 1) -> Pace:
    pace = Pace()
    for _ in range(times):
        for rows, seconds in batches:
            pace.observe(rows, seconds, 0.0)
    return pace


def test_nothing_is_known_before_the_first_batch_or_of_long_ago():
    assert Pace().seconds(5, 0.0) == 0
    assert seen((4, 0.1)).seconds(4, MAX_AGE) == 0.1
    assert seen((4, 0.1)).seconds(4, MAX_AGE + 1) == 0


def test_a_pace_need_not_follow_a_line():
    pace = seen((1, 0.010), (8, 0.010), (64, 0.012), (512, 0.090))
    assert pace.seconds(1, 0.0) == 0.010
    assert pace.seconds(4, 0.0) == pytest.approx(0.010)
    assert pace.seconds(36, 0.0) == pytest.approx(0.011)
    assert pace.seconds(512, 0.0) == pytest.approx(0.090)
    assert pace.seconds(1024, 0.0) == pytest.approx(0.180)


@given(st.lists(st.tuples(st.integers(0, 300), st.floats(1e-6, 10)), min_size=1, max_size=20))
def test_what_is_expected_is_about_what_was_seen(batches):
    pace = seen(*batches)
    slowest = max(seconds for _, seconds in batches)
    assert all(0 < pace.seconds(rows, 0.0) <= 2 * slowest for rows, _ in batches)


def test_a_slow_start_is_soon_forgotten_and_one_slow_batch_is_no_trend():
    pace = seen((8, 2.0))
    for _ in range(12):
        pace.observe(8, 0.005, 0.0)
    assert pace.seconds(8, 0.0) < 0.010
    pace = seen((8, 0.005), times=20)
    pace.observe(8, 2.0, 0.0)
    assert pace.seconds(8, 0.0) < 0.010


def in_flight_of(device: float, most: int = 8, batches: int = 2000) -> list[int]:
    """The limits over time on a device that works on `device` batches at once."""
    bound = InFlight(1, most)
    limits = []
    for _ in range(batches):
        bound.observe(1.0, max(1.0, bound.limit / device), bound.limit)
        limits.append(bound.limit)
    return limits


@pytest.mark.parametrize("device", [1, 2, 5])
def test_as_many_are_in_flight_as_keep_the_device_busy(device):
    later = in_flight_of(device)[500:]
    assert max(set(later), key=later.count) == device
    assert sum(device - 1 <= limit <= device + 1 for limit in later) > 0.95 * len(later)


def test_what_is_fixed_stays_and_a_device_with_time_to_spare_says_nothing():
    fixed = InFlight(3, 3)
    for _ in range(100):
        fixed.observe(1.0, 9.0, 3)
    assert fixed.limit == 3
    idle = InFlight(1, 8)
    idle.limit = 4
    for _ in range(100):
        idle.observe(1.0, 1.0, 2)
    assert idle.limit == 4
