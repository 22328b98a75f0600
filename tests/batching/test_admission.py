"""Who is admitted, by how long others took: decisions on a fake clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.admission import MARGIN, Admission
from shardserve.batching.errors import Unavailable


def learnt(*took: tuple[int, float], kind: str | None = None) -> Admission:
    """One that has seen requests that began as one of so many take so many seconds."""
    admission = Admission()
    for in_flight, seconds in took:
        admission.observe(in_flight, seconds, 0.0, kind)
    return admission


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


def test_what_is_expected_to_be_late_is_refused_and_told_why() -> None:
    admission = begin(learnt((1, 0.010), (8, 0.080)), 7)
    with pytest.raises(Unavailable, match=r"take 0\.080 s, and its deadline is in 0\.030 s"):
        admission.check(0.030, 0.0)
    assert admission.refused == 1
    assert admitted(admission, 0.080 / MARGIN + 1e-6)


def test_while_nothing_is_under_way_everything_may_begin() -> None:
    admission = learnt((1, 5.0))
    assert admitted(admission, 0.001)
    admission.begin()
    assert not admitted(admission, 0.001)
    admission.end()
    assert admitted(admission, 0.001)


def test_more_than_were_ever_under_way_are_tried() -> None:
    admission = begin(learnt((1, 0.010), (4, 0.012)), 50)
    assert admitted(admission, 0.030)


def test_what_is_known_is_forgotten_in_time() -> None:
    admission = begin(learnt((1, 1.0), (16, 1.0)), 15)
    assert not admitted(admission, 0.030)
    assert admitted(admission, 0.030, now=60.0)


def test_kinds_are_told_apart_and_one_that_is_not_named_is_refused_only_if_all_are() -> None:
    admission = begin(learnt((4, 0.5), kind="slow"), 3)
    admission.observe(4, 0.001, 0.0, "fast")
    assert admitted(admission, 0.030, "fast")
    assert not admitted(admission, 0.030, "slow")
    assert admitted(admission, 0.030)
    assert admitted(admission, 0.030, "never seen")


@given(
    st.lists(st.tuples(st.integers(1, 64), st.floats(1e-4, 1.0)), min_size=1, max_size=20),
    st.integers(0, 80),
    st.floats(1e-4, 10.0),
    st.floats(0.0, 5.0),
)
def test_who_has_more_time_is_never_refused_where_one_with_less_is_not(
    took, in_flight, left, more
) -> None:
    admission = begin(learnt(*took), in_flight)
    if admitted(admission, left):
        assert admitted(admission, left + more)
