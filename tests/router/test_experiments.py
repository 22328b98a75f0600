"""Canaries and shadows: who answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument
from shardserve.router.experiments import Experiment, Route, parse_share, route, stickiness

SHARES = st.floats(0, 1)
CHANCES = st.floats(0, 1, exclude_max=True)
VERSIONS = st.sets(st.integers(0, 9), min_size=1, max_size=4)


@given(VERSIONS, CHANCES)
def test_without_an_experiment_the_newest_answers(versions, chance) -> None:
    assert route(versions, Experiment(), chance) == Route(max(versions))


@given(st.sets(st.integers(0, 9), min_size=2), SHARES, SHARES, CHANCES)
def test_who_answers_is_the_newest_or_the_one_before(versions, canary, shadow, chance) -> None:
    newest, before = sorted(versions, reverse=True)[:2]
    found = route(versions, Experiment(canary, shadow), chance)
    assert found is not None
    assert found.answers in (newest, before)
    assert found.shadow in (None, newest)
    assert found.shadow != found.answers


@given(SHARES, SHARES, CHANCES)
def test_a_client_of_the_canary_stays_when_its_share_grows(one, other, chance) -> None:
    small, large = sorted((one, other))
    if route({1, 2}, Experiment(canary=small), chance) == Route(2) and small > 0:
        assert route({1, 2}, Experiment(canary=large), chance) == Route(2)


@pytest.mark.parametrize(
    "experiment", [Experiment(canary=0.05), Experiment(shadow=0.05), Experiment(0.05, 0.05)]
)
def test_shares_are_what_they_are_said_to_be(experiment) -> None:
    found = [route({1, 2}, experiment, stickiness("m", str(n).encode())) for n in range(20_000)]
    canary = sum(one.answers == 2 for one in found) / len(found)
    shadow = sum(one.shadow == 2 for one in found) / len(found)
    assert canary == pytest.approx(experiment.canary, abs=0.006)
    assert shadow == pytest.approx(experiment.shadow, abs=0.006)


def test_keys_stick_and_models_differ() -> None:
    assert stickiness("m", b"alice") == stickiness("m", b"alice")
    assert stickiness("m", b"alice") != stickiness("n", b"alice")
    assert 0 <= stickiness("m", b"") < 1


def test_a_single_version_answers_all_and_none_nobody() -> None:
    assert route({3}, Experiment(canary=0.05, shadow=1.0), 0.5) == Route(3)
    assert route((), Experiment(), 0.5) is None


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.5 %", 0.005), ("1", 1.0), ("0%", 0)])
def test_shares_are_read(text, share) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "five", "101%", "-1%", "5%%", "nan", "inf%"])
def test_what_is_no_share_is_refused(text) -> None:
    with pytest.raises(InvalidArgument, match="not "):
        parse_share(text)
