"""Lets running batches take turns on a device's slots with the batches of other stages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from shardserve.batching.driver import BatchDevice
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.tasks import Batch

R = TypeVar("R")

_Run = Callable[[], Coroutine[Any, Any, Any]]

#: A running batch waits for one turn at a time, and there are few of them.
_NO_BOUND = 1 << 20


class Turns:
    """A stage of a device whose batches are single bursts of steps.

    All running batches of a step function share one. Drain these before the device: a turn that
    it refuses fails the sequences that are being stepped.
    """

    def __init__(self, device: BatchDevice, name: str) -> None:
        alone = BatchingParameters(max_batch_size=1, max_enqueued_batches=_NO_BOUND)
        self._batcher = device.batcher(name, alone, _carry_out)

    async def take(self, run: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """What `run` returns, once it had a slot. Raises Unavailable where there is none any more.

        `run` raises nothing itself.
        """
        return cast(R, await self._batcher.submit(None, run, 1))

    async def drain(self) -> None:
        """Give no more turns, and leave the device when those under way have ended."""
        await self._batcher.drain()


async def _carry_out(batch: Batch[_Run]) -> list[Any]:
    return [await task.payload() for task in batch.tasks]
