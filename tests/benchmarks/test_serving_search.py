from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serving import versus_best, worst
from benchmarks.serving_search import Bracket, highest_rate

rates = st.floats(1.0, 1e5)


@given(capacity=rates, limit=rates, tries=st.integers(1, 12))
def test_what_is_found_held_and_is_close_to_the_limit(
    capacity: float, limit: float, tries: int
) -> None:
    bracket = Bracket.around(capacity)
    tried: dict[float, bool] = {}

    def holds(rate: float) -> bool:
        tried[rate] = rate <= limit
        return tried[rate]

    found = highest_rate(bracket, holds, tries)
    assert found == max((rate for rate, held in tried.items() if held), default=0.0)
    if bracket.floor <= limit <= bracket.fails:
        width = (bracket.fails - bracket.floor) / 2**tries
        assert limit - max(found, bracket.floor) <= width * (1 + 1e-9)


@given(capacity=rates, outcomes=st.lists(st.booleans(), max_size=12))
def test_every_try_lies_between_what_held_and_what_failed(
    capacity: float, outcomes: list[bool]
) -> None:
    bracket = Bracket.around(capacity)
    for held in outcomes:
        rate = bracket.next_rate()
        assert max(bracket.holds, bracket.floor) <= rate <= bracket.fails
        bracket = bracket.after(rate, held)


def test_mine_is_compared_to_the_best_of_the_others_round_by_round() -> None:
    value, note = versus_best(
        [400.0, 600.0, 500.0], {"slow": [10.0, 10.0, 9000.0], "fast": [200.0, 200.0, 100.0]}
    )
    assert value == 3.0
    assert note == "against fast; by round 2.00, 3.00, 5.00"


def test_nothing_is_claimed_without_others_or_where_they_promised_nothing() -> None:
    assert versus_best([], {"other": [1.0]})[0] is None
    assert versus_best([1.0], {})[0] is None
    assert versus_best([1.0], {"other": [0.0]})[0] is None


def test_the_worst_ratio_counts_and_none_if_one_is_unknown() -> None:
    assert worst({"one": 1.1, "other": 1.2}) == (1.2, "the worse of one: 1.10, other: 1.20")
    assert worst({"one": 1.1, "other": float("nan")})[0] is None
    assert worst({})[0] is None
