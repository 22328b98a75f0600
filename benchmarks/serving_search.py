"""Finds the highest load under which a server keeps a promise, in few tries. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bracket:
    """Between `holds`, the highest rate seen to hold (0: none), and `fails`, one that will not.

    Nothing below `floor` is tried.
    """

    holds: float
    fails: float
    floor: float

    @classmethod
    def around(cls, capacity: float) -> Bracket:
        """Where to look, given what the server did in a closed loop.

        An open loop queues, so it holds less; batching may let it hold a little more.
        """
        return cls(holds=0.0, fails=1.15 * capacity, floor=0.15 * capacity)

    def next_rate(self) -> float:
        """Half way, never below the floor."""
        return (max(self.holds, self.floor) + self.fails) / 2

    def after(self, rate: float, held: bool) -> Bracket:
        """The bracket that one more try leaves."""
        if held:
            return Bracket(max(self.holds, rate), max(self.fails, rate), self.floor)
        return Bracket(self.holds, min(self.fails, rate), self.floor)


def highest_rate(bracket: Bracket, holds: Callable[[float], bool], tries: int) -> float:
    """The highest rate that held in `tries` tries by bisection; 0 if none did."""
    for _ in range(tries):
        rate = bracket.next_rate()
        bracket = bracket.after(rate, holds(rate))
    return bracket.holds
