"""Loops that can be stepped, and what of them goes in and comes out. Plain data."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from shardserve.shards.cut.regions import RegionCall


class Kept(enum.Enum):
    """What a loop leaves behind of something: its last value, or all, [steps, rows, ...]."""

    LAST = "last"
    #: The last value as the one element of a list, [1, rows, ...].
    LAST_OF_LIST = "last of list"
    ALL = "all"


@dataclass(frozen=True)
class StepLoop:
    """A loop as a step, between tensors of the graph.

    `call`'s operands are the states' first values, [rows, ...], what is read, [steps, rows, ...],
    constants, [rows, ...], then scalars: the bounds on the steps, and the sizes of lists with an
    element for each step. Its outputs are `kept`: each the fetch at that place, and what of it.

    A step feeds `feeds`, the states, what is read in this step, and the constants, and fetches
    `fetches`, the states again and then what is written.
    """

    node: str
    call: RegionCall
    states: int
    reads: int
    constants: int
    bounds: int
    sizes: int
    feeds: tuple[str, ...]
    fetches: tuple[str, ...]
    kept: tuple[tuple[int, Kept], ...]


@dataclass(frozen=True)
class LiftedLoops:
    """A graph's loops: those that are steps now, and why the others stay whole, by node."""

    loops: Mapping[str, StepLoop] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)

    @property
    def calls(self) -> dict[str, RegionCall]:
        """Each lifted loop's call, by each tensor that it makes known."""
        return {output: one.call for one in self.loops.values() for output in one.call.outputs}

    @property
    def tensors(self) -> tuple[str, ...]:
        """All that is fed or fetched to run a loop."""
        return tuple(
            name
            for one in self.loops.values()
            for name in (*one.feeds, *one.fetches, *one.call.operands, *one.call.outputs)
        )
