"""A program made ready to run, and one request on its way through it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.router.call_outs import Caller
from shardserve.router.joined_stage import JoinedStage
from shardserve.router.rounds import Fanout, SplitRound
from shardserve.router.servable import RequestContext
from shardserve.router.session import Stage
from shardserve.shards.cut.call_outs import REQUEST
from shardserve.shards.cut.program import Program
from shardserve.shards.cut.regions import RegionCall
from shardserve.shards.cut.scorings import AnyLookup

Array = npt.NDArray[Any]

#: Ids in a round, or elements to merge, up to which splitting and merging stay on the event loop:
#: handing over to a thread and back costs about what they cost then.
INLINE_IDS = 2048


@dataclass(frozen=True)
class Step:
    """A stage (None where nothing has to run), and the lookups and regions that follow it.

    `joined` where requests are joined for it.
    """

    stage: Stage | None
    joined: JoinedStage | None
    lookups: tuple[AnyLookup, ...]
    regions: tuple[RegionCall, ...]


@dataclass(frozen=True)
class Compiled:
    """`dense` is the last step. `at_front`: its requests are to be joined before the first."""

    program: Program
    steps: tuple[Step, ...]
    dense: Step
    at_front: bool = False


class Work:
    """One request on its way: the tensors known, and the round that is still to be merged."""

    def __init__(
        self,
        fanout: Fanout,
        known: dict[str, Array],
        context: RequestContext,
        caller: Caller | None,
    ) -> None:
        self.context = context
        self._caller = caller
        if caller is not None:
            known[REQUEST] = np.array(caller.number, np.int64)
        self._fanout = fanout
        self.known = known
        self._pending: tuple[SplitRound, dict[int, Any]] | None = None

    def take(self, split: SplitRound, replies: dict[int, Any]) -> None:
        """A round has been answered; it is to be merged."""
        self._pending = (split, replies)

    def is_small(self, lookups: Sequence[AnyLookup]) -> bool:
        """Whether merging what came, and splitting these lookups, is too little for a thread."""
        known = [one.operands[0] for one in lookups if one.operands[0] in self.known]
        ids = sum(self.known[name].size for name in known)
        if self._pending is not None:
            ids += sum(one.size for one in self._pending[0].prepared)
        return ids <= INLINE_IDS

    def merge(self) -> None:
        """Add what the last round's answers make known."""
        if self._pending is None:
            return
        started = time.monotonic()
        split, replies = self._pending
        self._pending = None
        self.known.update(self._fanout.merge(split, replies))
        self.context.spend("merge", time.monotonic() - started)

    def next_round(self, stage: Stage | None, lookups: Sequence[AnyLookup]) -> SplitRound:
        """Merge, run the ids stage, and split the lookups that follow it."""
        self.merge()
        started = time.monotonic()
        called = self._run(stage)
        split = self._fanout.split(lookups, self.known)
        self.context.spend("ids", time.monotonic() - started - called)
        return split

    def finish(self, dense: Stage | None) -> None:
        """Merge, and run the dense stage."""
        self.merge()
        started = time.monotonic()
        called = self._run(dense)
        self.context.spend("dense", time.monotonic() - started - called)

    def _run(self, stage: Stage | None) -> float:
        """Run it; the seconds that call-outs took, which are spent on their own stages."""
        if stage is None:
            return 0.0
        values = [self.known[name] for name in stage.feeds]
        spent: dict[str, float] = {}
        if self._caller is None:
            results = stage(*values)
        else:
            results, spent = self._caller.run(stage, values)
        self.known.update(zip(stage.fetches, results, strict=True))
        for name, seconds in spent.items():
            self.context.spend(name, seconds)
        return sum(spent.values())
