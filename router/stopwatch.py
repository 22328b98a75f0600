"""What a piece of work takes of the thread that does it, told from what the system takes."""

from __future__ import annotations

import resource
import time


class Stopwatch:
    """Runs from when it is made, on the thread that makes it and reads it. 1 us, all in all."""

    __slots__ = ("_own", "_waits", "started")

    def __init__(self) -> None:
        self._waits = _waits()
        self._own = time.thread_time()
        #: When, on `time.monotonic`.
        self.started = time.monotonic()

    def own(self) -> float:
        """Seconds that the thread has had a core."""
        return time.thread_time() - self._own

    def passed(self) -> float:
        """Seconds that have passed."""
        return time.monotonic() - self.started

    def held(self) -> float:
        """Seconds that the work has held up its thread.

        All that have passed if it waited for anything; if it did not, only those that it had a
        core: the others are what the system, which had taken the core away, gave to somebody else.
        """
        passed = self.passed()
        return passed if _waits() != self._waits else min(passed, self.own())


def _waits() -> int:
    """How often this thread has given up its core by itself, to wait."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
