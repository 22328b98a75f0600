"""A stage of a program whose concurrent calls are joined, and run as one."""

from __future__ import annotations

from functools import cached_property
from typing import cast

from shardserve.batching.driver import BatchDevice, StageCounts
from shardserve.batching.likeness import Likeness
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.tensor_stage import TensorBatch, TensorStage
from shardserve.router.batch_context import batch_context
from shardserve.router.servable import Array, RequestContext
from shardserve.router.session import Stage, StageThreads


class StageQueue:
    """The queue of a model's stages of one kind, run on the router's threads.

    Their time is spent on `spend`.
    """

    def __init__(
        self,
        device: BatchDevice,
        name: str,
        parameters: BatchingParameters,
        threads: StageThreads,
        spend: str,
    ) -> None:
        self._device = device
        self.name = name
        self._parameters = parameters
        self._threads = threads
        self._spend = spend

    @cached_property
    def tensors(self) -> TensorStage:
        """Made by the first request, on the event loop: programs are compiled on threads."""
        return TensorStage(
            self._device,
            self.name,
            self._parameters,
            self._run,
            lambda group: cast(JoinedStage, group).stage.fetches,
            multiples=True,
        )

    def counts(self) -> StageCounts:
        """What has been done so far."""
        return self.tensors.counts()

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        await self.tensors.drain()

    async def _run(self, joined: list[Array], batch: TensorBatch) -> list[Array]:
        stage = cast(JoinedStage, cast(Likeness, batch.key).group).stage
        with batch_context(batch) as context:
            values: list[Array] = await self._threads.run(
                lambda: stage(*joined), context, self._spend
            )
        return values


class JoinedStage:
    """One stage of a program, with the queue that its calls wait in.

    Of its feeds and fetches each row of a request has as many lines as any other row.
    """

    def __init__(self, queue: StageQueue, stage: Stage) -> None:
        self.stage = stage
        self._queue = queue

    async def __call__(self, known: dict[str, Array], rows: int, context: RequestContext) -> None:
        """Add the stage's fetches to what is `known` of a request of so many rows.

        Raises as `TensorStage` does.
        """
        values = await self._queue.tensors(
            [known[name] for name in self.stage.feeds],
            rows,
            context.deadline,
            group=self,
            context=context,
        )
        known.update(zip(self.stage.fetches, values, strict=True))
