"""A stage of a program whose concurrent calls are joined, and run as one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from shardserve.batching.driver import BatchDevice
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.tasks import Batch
from shardserve.batching.tensor_stage import TensorStage
from shardserve.router.batch_context import batch_context
from shardserve.router.servable import Array, RequestContext
from shardserve.router.session import Stage, StageThreads


class JoinedStage:
    """Runs a stage of TensorFlow's on the router's threads, for several requests at once.

    Of its feeds and fetches each row of a request has as many lines as any other row.
    """

    def __init__(
        self,
        device: BatchDevice,
        name: str,
        parameters: BatchingParameters,
        threads: StageThreads,
        stage: Stage,
        spend: str,
    ) -> None:
        """The time it takes is spent on `spend`."""
        self._device = device
        self._name = name
        self._parameters = parameters
        self._threads = threads
        self._stage = stage
        self._spend = spend

    @cached_property
    def _queue(self) -> TensorStage:
        """Made by the first request, on the event loop; the stage was compiled on a thread."""
        return TensorStage(
            self._device,
            self._name,
            self._parameters,
            self._run,
            self._stage.fetches,
            multiples=True,
        )

    async def __call__(self, known: dict[str, Array], rows: int, context: RequestContext) -> None:
        """Add the stage's fetches to what is `known` of a request of so many rows.

        Raises as `TensorStage` does.
        """
        tensors = [known[name] for name in self._stage.feeds]
        values = await self._queue(tensors, rows, context.deadline, context=context)
        known.update(zip(self._stage.fetches, values, strict=True))

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        await self._queue.drain()

    async def _run(self, joined: list[Array], batch: Batch[Sequence[Array]]) -> Sequence[Array]:
        with batch_context(batch) as context:
            values: Sequence[Any] = await self._threads.run(
                lambda: self._stage(*joined), context, self._spend
            )
            return values
