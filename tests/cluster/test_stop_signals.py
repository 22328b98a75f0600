"""The signals that ask the server to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from shardserve.cluster.stop_signals import Stopped, StopSignals, stop_signals

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

    with pytest.raises(Stopped):
        stop.check()


def test_a_terminal_that_goes_away_stops_nothing_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in stop_signals()

    stop = StopSignals()
    signal.raise_signal(signal.SIGHUP)
    stop.check()
