"""Ctrl-C and SIGTERM as a question that the main thread asks, not as an exception anywhere."""

from __future__ import annotations

import signal
from types import FrameType


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask us to stop.

    That of a terminal that goes away is one of them, unless it is ignored, as `nohup` has it.
    """
    asked = (signal.SIGINT, signal.SIGTERM)
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return asked if is_ignored else (*asked, signal.SIGHUP)


class Stopped(Exception):
    """Somebody asked us to stop."""


class StopSignals:
    """Remembers that a signal came. For the main thread.

    A second signal changes nothing: what is ended in order leaves nothing behind.
    """

    def __init__(self) -> None:
        self._asked = False
        self.listen()

    def listen(self) -> None:
        """Take the signals; again after calling what takes them for itself, as `ray.init` does."""
        for number in stop_signals():
            signal.signal(number, self._ask)

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self._asked:
            raise Stopped

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
