"""Calls for which there is no replica at the moment."""

from __future__ import annotations

import time
from collections.abc import Callable

from shardserve.batching.errors import DeadlineExceeded, Unavailable
from shardserve.shards.calls import AnyCall
from shardserve.shards.in_flight import InFlight
from shardserve.shards.timers import Alarm


class WaitingRoom:
    """Holds calls through a short outage: from its start for `patience_seconds`, then no more.

    So calls survive a connection's being made anew, and fail at once when a shard stays away.
    At most `places` calls wait. `why` says, for the error, what is wrong with the replicas.
    """

    def __init__(
        self, name: str, patience_seconds: float, places: int, why: Callable[[], str]
    ) -> None:
        self._name = name
        self._patience = patience_seconds
        self._places = places
        self._why = why
        self._calls = InFlight()
        self._last_number = 0
        self._until: float | None = None
        self._alarm = Alarm(self._ring)

    def __len__(self) -> int:
        return len(self._calls)

    def open(self) -> None:
        """There is no replica. Patience begins now, if it has not begun before."""
        if self._until is None:
            self.open_anew()

    def open_anew(self) -> None:
        """There is no replica, but new hope: patience begins now."""
        self._until = time.monotonic() + self._patience

    def admit(self, call: AnyCall) -> None:
        """Hold a call until `release`, or fail it when its deadline or our patience ends."""
        self.open()
        if self._is_over() or len(self._calls) >= self._places:
            call.end(self._unavailable())
            return
        call.holder = self
        call.number = self._last_number = self._last_number + 1
        self._calls[call.number] = call
        self._set_alarm(call.deadline)

    def forget(self, call: AnyCall) -> None:
        """Let go of a cancelled call."""
        self._calls.take(call.number)

    def release(self) -> list[AnyCall]:
        """The outage is over: hand over those who waited."""
        self._until = None
        self._alarm.cancel()
        return self._calls.take_all()

    def _is_over(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    def _set_alarm(self, deadline: float) -> None:
        if self._until is not None and self._calls:
            self._alarm.no_later_than(min(self._until, deadline))

    def _ring(self) -> None:
        for call in self._calls.take_expired(time.monotonic()):
            call.end(DeadlineExceeded(f"{self._name}: no replica came back within the deadline"))
        if self._is_over():
            for call in self._calls.take_all():
                call.end(self._unavailable())
        self._set_alarm(self._calls.earliest_deadline())

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"{self._name}: no replica can be reached ({self._why()})")
