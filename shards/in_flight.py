"""The calls that one connection holds. Pure: it is told the time, and touches no socket."""

from __future__ import annotations

import math

from shardserve.shards.calls import AnyCall


class InFlight(dict[int, AnyCall]):
    """Calls by number. Whoever takes a call out of here ends it: so each ends exactly once."""

    def take(self, number: int) -> AnyCall | None:
        """Let go of a call; None if it has ended already."""
        return self.pop(number, None)

    def take_expired(self, now: float) -> list[AnyCall]:
        """Let go of the calls whose deadline has come."""
        expired = [call for call in self.values() if call.deadline <= now]
        for call in expired:
            del self[call.number]
        return expired

    def take_all(self) -> list[AnyCall]:
        """Let go of every call."""
        calls = list(self.values())
        self.clear()
        return calls

    def earliest_deadline(self) -> float:
        """When the next call expires; infinity if there is none."""
        return min((call.deadline for call in self.values()), default=math.inf)
