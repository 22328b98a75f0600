"""What a stage's runs have taken, and whether the next may take place on the event loop.

It may where it takes less than handing it to a thread does. That is foreseen from runs with the
same shapes, and may prove wrong: operations share threads with each other, and wait for them. So
each run on the loop is looked at, and one that was long keeps the stage away for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardserve.router.servable import Array

#: What handing over takes, about: the waiting of two threads for each other, with the work of both.
BRIEF_SECONDS = 50e-6

#: A run on the event loop that takes longer than this has held it up.
LONG_SECONDS = 10 * BRIEF_SECONDS

#: Brief runs on threads with the same shapes before these may run on the event loop.
ENOUGH_RUNS = 3

#: Combinations of shapes that are known of a stage. Clients choose them: it is bounded.
MAX_SHAPES = 256

#: Runs that a stage is away from the event loop for after one there was long, at first and at most.
LEAST_AWAY, MOST_AWAY = 64, 1 << 14

#: Brief runs on the event loop that make up for a long one.
FORGIVEN_AFTER = 512

#: The weight of the latest run in the average.
_LATEST = 1 / 8

#: What a run counts at most: that the system took the core away says little of the stage.
_MOST = 3 * BRIEF_SECONDS


class RunTimes:
    """What the runs of one stage have taken, by the shapes of its feeds.

    For one event loop. Feeds of strings have no time of their own: nobody knows how long they are.
    """

    def __init__(self) -> None:
        self._known: dict[Any, Runs] = {}
        self._away = Away()

    def of(self, values: Sequence[Array]) -> Runs | None:
        """Those with such feeds, which may have been none; None for strings."""
        shapes = values[0].shape if len(values) == 1 else tuple([value.shape for value in values])
        runs = self._known.get(shapes)
        return self._first(shapes, values) if runs is None else runs

    def _first(self, shapes: Any, values: Sequence[Array]) -> Runs | None:
        if any(value.dtype.hasobject for value in values):
            return None
        if len(self._known) >= MAX_SHAPES:
            self._known.clear()
        return self._known.setdefault(shapes, Runs(self._away))


class Away:
    """For how many more runs a stage is away from the event loop. Shared by all of its shapes.

    Each long run on the loop doubles how many they are, `FORGIVEN_AFTER` brief ones there halve it.
    So in the long run about one in `FORGIVEN_AFTER` of all runs is long there at most, whatever
    makes them so: where more are, the runs away double until they outnumber those on the loop.
    """

    __slots__ = ("_brief", "_left", "_next")

    def __init__(self) -> None:
        self._brief = 0
        self._left = 0
        self._next = LEAST_AWAY

    @property
    def is_over(self) -> bool:
        return not self._left

    def ran_on_thread(self) -> None:
        if self._left:
            self._left -= 1

    def was_long(self) -> None:
        self._left = self._next
        self._next = min(2 * self._next, MOST_AWAY)

    def was_brief(self) -> None:
        self._brief += 1
        if self._brief == FORGIVEN_AFTER:
            self._brief = 0
            self._next = max(self._next // 2, LEAST_AWAY)


class Runs:
    """Of one stage with one combination of shapes, which take about the same."""

    __slots__ = ("_away", "_brief", "_is_known", "_seconds")

    def __init__(self, away: Away) -> None:
        self._away = away
        #: Runs on threads that were brief, waiting included.
        self._brief = 0
        #: A moving average, of what they took of the thread that they ran on where that is known.
        self._seconds: float | None = None
        self._is_known = False

    @property
    def is_brief(self) -> bool:
        """Whether the next is to run on the event loop."""
        return self._is_known and self._away.is_over

    def on_thread(self, own: float, held: float) -> None:
        """One took `own` seconds of its thread, and held it up for so many (`Stopwatch.held`).

        It may have waited for the interpreter, which it has on the event loop, or for other threads
        of the stage's operations: nobody can tell. So some must not have waited, and the average
        must be brief besides.
        """
        self._away.ran_on_thread()
        self._brief += held <= BRIEF_SECONDS
        average = self._averaged(own)
        self._is_known = self._brief >= ENOUGH_RUNS and average <= BRIEF_SECONDS

    def on_loop(self, held: float) -> None:
        """One held up the event loop for so many seconds (`Stopwatch.held`)."""
        # Twice as many as it takes to get here, so that shapes do not come and go.
        if self._averaged(held) <= 2 * BRIEF_SECONDS and held <= LONG_SECONDS:
            self._away.was_brief()
            return
        self._brief = 0
        self._is_known = False
        self._away.was_long()

    def _averaged(self, seconds: float) -> float:
        counted = min(seconds, _MOST)
        before = counted if self._seconds is None else self._seconds
        self._seconds = before + (counted - before) * _LATEST
        return self._seconds
