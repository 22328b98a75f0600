"""The signals that ask the server to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from shardserve.cluster.stop_signals import (
    Ending,
    Stopped,
    StopSignals,
    ending_of,
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
    served = [ending_of(number, 3.0, is_served=True) for number in ALL]
    assert served == [Ending(0.0), Ending(3.0), Ending(0.0)]
    starting = [ending_of(number, 3.0, is_served=False) for number in ALL]
    assert starting == [Ending(0.0, 130), Ending(0.0, 143), Ending(0.0, 129)]


def test_who_exits_on_a_signal_that_was_lent_to_it_only_says_that_it_came() -> None:
    def exits() -> None:
        # As Ray's driver does it.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    stop = StopSignals()
    with pytest.raises(Stopped) as stopped, stop.lent():
        exits()
    assert stopped.value.number == signal.SIGTERM

    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped):
        stop.check()


@pytest.mark.parametrize("code", [None, 1, "no Ray"])
def test_an_exit_that_no_signal_asked_for_is_one(code: object) -> None:
    stop = StopSignals()
    with pytest.raises(SystemExit) as exited, stop.lent():
        raise SystemExit(code)
    assert exited.value.code == code
    stop.check()


def test_a_terminal_that_goes_away_stops_nothing_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in stop_signals()

    stop = StopSignals()
    signal.raise_signal(signal.SIGHUP)
    stop.check()
