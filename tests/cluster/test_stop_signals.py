"""The signals that ask the server to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from shardserve.cluster.stop_signals import (
    Stopped,
    StopSignals,
    drain_after,
    status_of,
    stop_signals,
)

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """All of them end a process at first; whoever took them before has them again at the end."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ALL}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ALL)
def test_each_of_them_is_remembered(number: signal.Signals) -> None:
    stop = StopSignals()
    stop.check()

    signal.raise_signal(number)

    with pytest.raises(Stopped) as stopped:
        stop.check()
    assert stopped.value.number == number


def test_the_first_signal_counts_and_a_second_one_ends_a_rest() -> None:
    stop = StopSignals()
    signal.raise_signal(signal.SIGTERM)
    rests: list[float] = []

    def pause(seconds: float) -> None:
        rests.append(seconds)
        if len(rests) == 3:
            signal.raise_signal(signal.SIGINT)

    stop.rest(1.0, pause)
    assert len(rests) == 3
    with pytest.raises(Stopped) as stopped:
        stop.check()
    assert stopped.value.number == signal.SIGTERM

    stop.rest(1.0, rests.append)
    assert sum(rests[3:]) == pytest.approx(1.0)


def test_only_a_schedulers_signal_drains_and_each_has_its_status() -> None:
    assert [drain_after(number, 3.0) for number in ALL] == [0.0, 3.0, 0.0]
    assert [status_of(number) for number in ALL] == [130, 143, 129]


def test_a_terminal_that_goes_away_stops_nothing_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in stop_signals()

    stop = StopSignals()
    signal.raise_signal(signal.SIGHUP)
    stop.check()
