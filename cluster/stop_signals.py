"""Ctrl-C and SIGTERM as a question that the main thread asks, not as an exception anywhere."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_LOOK_SECONDS = 0.1


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask us to stop.

    That of a terminal that goes away is one of them, unless it is ignored, as `nohup` has it.
    """
    asked = (signal.SIGINT, signal.SIGTERM)
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return asked if is_ignored else (*asked, signal.SIGHUP)


@dataclass(frozen=True)
class Ending:
    """How a server ends: after draining for so many seconds, with an exit status."""

    drain_seconds: float = 0.0
    status: int = 0


def ending_of(number: int, drain_seconds: float, *, is_served: bool) -> Ending:
    """What a signal asks of a server that is to drain for so long.

    One that has not served yet has nothing to drain, and ends with the status of a shell. SIGTERM
    is a scheduler's, whose balancers take a while; the others are a person's, who waits.
    """
    if not is_served:
        return Ending(status=128 + number)
    return Ending(drain_seconds if number == signal.SIGTERM else 0.0)


class Stopped(Exception):
    """Somebody asked us to stop, by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


class StopSignals:
    """Remembers which signal came first, and how many came. For the main thread.

    A second one is no other question: what is ended in order leaves nothing behind. It only ends
    what is waited for by `rest`.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._count = 0
        self.listen()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """For what takes signals for itself, and exits on one, as `ray.init` does on SIGTERM.

        Raises Stopped then. The signals are ours again at the block's end.
        """
        try:
            yield
        except SystemExit as exited:
            for number in stop_signals():
                if exited.code == number and signal.getsignal(number) != self._ask:
                    self._ask(number, None)
            self.check()
            raise
        finally:
            self.listen()

    def listen(self) -> None:
        """Take the signals."""
        for number in stop_signals():
            signal.signal(number, self._ask)

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self._first is not None:
            raise Stopped(self._first)

    def rest(self, seconds: float, pause: Callable[[float], None] = time.sleep) -> None:
        """Return after so many seconds, or soon after a signal that comes meanwhile."""
        known = self._count
        for _ in range(int(seconds / _LOOK_SECONDS)):
            if self._count != known:
                return
            pause(_LOOK_SECONDS)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._first is None:
            self._first = number
