"""Who is admitted, by how others fared: decisions on a fake clock."""

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.admission import Admission
from shardserve.batching.errors import Unavailable


def admitted(admission: Admission, left: float, kind: str | None = None, now: float = 0.0) -> bool:
    try:
        admission.check(now + left, now, kind)
    except Unavailable:
        return False
    return True


def begin(admission: Admission, count: int) -> Admission:
    for _ in range(count):
        admission.begin()
    return admission


def late(admission: Admission, in_flight: int, allowed: float = 1.0, kind: str | None = None):
    """One that began as one of so many took all of its time."""
    admission.observe(in_flight, -allowed, 0.0, 0.0, kind)
    return admission


def test_what_is_expected_to_be_late_is_refused_and_told_why() -> None:
    admission = begin(late(Admission(), 10), 9)
    with pytest.raises(Unavailable, match=r"9 requests are under way.* in 1\.000 s .*only 9 may"):
        admission.check(1.0, 0.0)
    assert admission.refused == 1
    assert admitted(admission, 1.2)


def test_while_nothing_is_under_way_everything_may_begin() -> None:
    admission = late(Admission(), 1)
    assert admitted(admission, 0.001)
    admission.begin()
    assert not admitted(admission, 0.001)
    admission.end()
    assert admitted(admission, 0.001)


def test_until_something_was_nearly_late_everybody_is_admitted() -> None:
    admission = begin(Admission(), 1000)
    admission.observe(1000, -0.5, 0.5, 0.0)
    assert admitted(admission, 0.001)


def test_those_that_began_before_it_was_known_count_once() -> None:
    admission = late(Admission(), 10)
    for _ in range(100):
        admission.observe(10, -1.0, 0.0, 0.0)
    assert admitted(begin(admission, 7), 1.0)


def test_a_slow_request_among_few_says_nothing_of_how_many_may_be_under_way() -> None:
    admission = late(Admission(), 100)
    admission.observe(1, 1.0, 2.0, 3.0)
    assert admitted(begin(admission, 79), 1.0)


def test_kinds_are_told_apart_and_one_that_is_not_named_is_refused_only_if_all_are() -> None:
    admission = begin(late(Admission(), 4, kind="slow"), 30)
    late(admission, 100, kind="fast")
    assert admitted(admission, 1.0, "fast")
    assert not admitted(admission, 1.0, "slow")
    assert admitted(admission, 1.0)
    assert admitted(admission, 1.0, "never seen")


@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.floats(0.0, 1.0), st.floats(1e-3, 1.0)),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 80),
    st.floats(1e-4, 10.0),
    st.floats(0.0, 5.0),
)
def test_who_has_more_time_is_never_refused_where_one_with_less_is_not(
    fared, in_flight, left, more
) -> None:
    admission = Admission()
    for number, (count, took, allowed) in enumerate(fared):
        admission.observe(count, number, number + allowed, number + took)
    begin(admission, in_flight)
    if admitted(admission, left):
        assert admitted(admission, left + more)


def served(
    admission: Admission, rate: float, service: float, allowed: float, start: float, seconds: float
) -> tuple[int, float]:
    """One server, first come, first served, under an even load: how many it answers in time.

    And when it is done.
    """
    free, in_time = start, 0
    under_way: list[tuple[float, float, int]] = []

    def end(until: float) -> None:
        nonlocal in_time
        while under_way and under_way[0][0] <= until:
            ended, began, count = heapq.heappop(under_way)
            admission.end()
            admission.observe(count, began, began + allowed, ended)
            in_time += ended - began <= allowed

    for number in range(int(rate * seconds)):
        now = start + number / rate
        end(now)
        if admitted(admission, allowed, now=now):
            free = max(free, now) + service
            heapq.heappush(under_way, (free, now, admission.begin()))
    end(float("inf"))
    return in_time, max(free, start + seconds)


@settings(max_examples=25, deadline=None)
@given(st.floats(1.2, 10.0), st.floats(0.001, 0.02), st.floats(5.0, 50.0), st.floats(0.0, 20.0))
def test_under_any_overload_most_of_what_a_server_can_do_is_answered_in_time(
    load, service, deadline, stall
) -> None:
    admission, allowed = Admission(), deadline * service
    # A stall teaches it the worst, and it has to find back.
    _, now = served(admission, 1 / service, service * (1 + stall), allowed, 0.0, 100 * service)
    _, now = served(admission, load / service, service, allowed, now, 1000 * service)
    count, _ = served(admission, load / service, service, allowed, now, 1000 * service)
    assert count >= 0.8 * 1000
