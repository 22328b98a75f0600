"""Runs step functions for the rows of many requests: who steps them, and with whom."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, TypeAlias

from shardserve.batching.driver import BatchDevice
from shardserve.batching.errors import ServingError, Unavailable
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.step_driver import (
    Burst,
    StepBatcher,
    StepCounts,
    Taken,
    TakeSteps,
    take_steps,
)
from shardserve.batching.step_form import RowResult, SequenceRow, StepForm
from shardserve.batching.step_turns import Turns
from shardserve.router.servable import Array
from shardserve.router.session import StageThreads

#: Running batches of one step function. Clients choose the shapes that make one, so it is bounded.
MAX_RUNNING_BATCHES = 16

#: The inputs' arrays, [rows, ...] each, to the outputs'; and one that does not block.
StepCall: TypeAlias = Callable[[list[Array]], Sequence[Array]]
AsyncStepCall: TypeAlias = Callable[[list[Array]], Coroutine[Any, Any, Sequence[Array]]]


def on_threads(threads: StageThreads, call: StepCall) -> TakeSteps:
    """Takes all steps of a burst on one thread."""

    async def take(burst: Burst) -> Taken:
        taken: Taken = await threads.run(lambda: take_steps(burst, call))
        return taken

    return take


def on_loop(call: AsyncStepCall) -> TakeSteps:
    """Awaits one step of a burst after the other, for steps that ask shards."""

    async def take(burst: Burst) -> Taken:
        batch, taken = burst.batch, 0
        stopped: list[SequenceRow] = []
        while taken < burst.limit and not stopped and not (taken and burst.interrupted):
            try:
                stopped = batch.commit(await call(batch.prepare(burst.rows, burst.part)))
            except ServingError:
                if not taken:
                    raise
                break
            taken += 1
        return Taken(taken, stopped)

    return take


class SteppedRows:
    """One step function. Rows that are alike are stepped together, in a running batch."""

    def __init__(
        self,
        name: str,
        parameters: BatchingParameters,
        form: StepForm,
        take: TakeSteps,
        device: BatchDevice | None = None,
    ) -> None:
        self._turns = None if device is None else Turns(device, name)
        self._make = functools.partial(StepBatcher, name, parameters, form, take, self._turns)
        self._running: dict[Hashable, StepBatcher] = {}
        self._ended = StepCounts()
        self._draining = False

    async def run(
        self,
        rows: Sequence[SequenceRow],
        steps: Sequence[int],
        likeness: Hashable,
        deadline: float = math.inf,
        *,
        length_known: bool = True,
        nbytes: int = 0,
    ) -> list[RowResult]:
        """As `StepBatcher.submit`, with the rows of all requests of that likeness.

        Unavailable besides, where there are too many likenesses at once.
        """
        batcher = self._running.get(likeness) or self._new(likeness)
        return await batcher.submit(rows, steps, deadline, length_known=length_known, nbytes=nbytes)

    def counts(self) -> StepCounts:
        """What has been done, in all running batches together."""
        return _sum([self._ended, *[batcher.counts() for batcher in self._running.values()]])

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        self._draining = True
        for batcher in list(self._running.values()):
            await batcher.drain()
        if self._turns is not None:
            await self._turns.drain()

    def _new(self, likeness: Hashable) -> StepBatcher:
        if self._draining:
            raise Unavailable("The batch scheduling queue is closed: the model is being unloaded")
        if len(self._running) >= MAX_RUNNING_BATCHES:
            self._drop_an_idle_one()
        batcher = self._running[likeness] = self._make()
        return batcher

    def _drop_an_idle_one(self) -> None:
        for likeness, batcher in self._running.items():
            if batcher.is_idle:
                self._ended = _sum([self._ended, batcher.counts()])
                del self._running[likeness]
                return
        raise Unavailable(f"Sequences of {MAX_RUNNING_BATCHES} different shapes are being stepped")


def _sum(counts: Sequence[StepCounts]) -> StepCounts:
    """All together; the seconds a step takes are those of the last that has any."""
    names = [field.name for field in dataclasses.fields(StepCounts)]
    summed: dict[str, Any] = {name: sum(getattr(c, name) for c in counts) for name in names}
    summed["step_seconds"] = next((c.step_seconds for c in reversed(counts) if c.step_seconds), 0.0)
    return StepCounts(**summed)
