"""A sequence whose requests come whole from routers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shardserve.batching.errors import Unavailable
from shardserve.batching.stage import StageCounts
from shardserve.router.sequence_runners import SteppedSequence
from shardserve.router.servable import Array, RequestContext


class HostedSequence:
    """Steps the sequences of all routers' requests together. Implements `HostedStage`.

    Inputs and outputs are in the order of the sequence's signature.
    """

    def __init__(self, sequence: SteppedSequence) -> None:
        self._sequence = sequence
        self._signature = sequence.plan.signature
        self._under_way = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(
        self, tensors: Sequence[Array], rows: int, context: RequestContext
    ) -> list[Array]:
        """See `StageRunner.run`."""
        if self._draining:
            raise Unavailable("The batch scheduling queue is closed: the model is being unloaded")
        inputs = dict(zip(self._signature.inputs, tensors, strict=True))
        outputs = list(self._signature.outputs)
        self._under_way += 1
        self._idle.clear()
        try:
            found = await self._sequence.run(inputs, outputs, context)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        return [found[alias] for alias in outputs]

    def counts(self) -> StageCounts:
        """What has been done."""
        return self._sequence.counts().as_stage()

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended.

        What has not come to its steps yet was accepted, too.
        """
        self._draining = True
        await self._idle.wait()
        await self._sequence.drain()
