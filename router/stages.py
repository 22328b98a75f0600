"""Keeps the stages that requests ask for, each compiled once, off the event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict

from shardserve.batching.errors import DeadlineExceeded
from shardserve.router.servable import RequestContext
from shardserve.router.session import TIMED_OUT, Stage, TensorFlowRunner

_Key = tuple[tuple[str, ...], tuple[str, ...]]


class StageCache:
    """At most `limit` stages of one runner, the ones used last. For one event loop."""

    def __init__(self, runner: TensorFlowRunner, limit: int) -> None:
        self._runner = runner
        self._limit = limit
        self._ready: OrderedDict[_Key, Stage] = OrderedDict()
        self._making: dict[_Key, asyncio.Task[Stage]] = {}

    def __len__(self) -> int:
        return len(self._ready)

    async def get(
        self, feeds: tuple[str, ...], fetches: tuple[str, ...], context: RequestContext
    ) -> Stage:
        """The stage between them. Requests that ask while it is being compiled wait for that.

        Raises DeadlineExceeded, and what `TensorFlowRunner.make_callable` raises.
        """
        key = (feeds, fetches)
        stage = self._ready.get(key)
        if stage is not None:
            self._ready.move_to_end(key)
            return stage
        return await self._wait(key, context)

    def prepare(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> None:
        """Compile a stage now, on this thread."""
        self._keep((feeds, fetches), self._runner.make_callable(feeds, fetches))

    async def _wait(self, key: _Key, context: RequestContext) -> Stage:
        making = self._making.get(key)
        if making is None:
            making = asyncio.ensure_future(self._make(key))
            self._making[key] = making
        left = None if context.deadline == math.inf else context.deadline - time.monotonic()
        try:
            # One request that gives up must not take the stage from the others.
            return await asyncio.wait_for(asyncio.shield(making), left)
        except TimeoutError:
            raise DeadlineExceeded(TIMED_OUT) from None

    async def _make(self, key: _Key) -> Stage:
        try:
            stage: Stage = await self._runner.threads.run(lambda: self._runner.make_callable(*key))
            self._keep(key, stage)
            return stage
        finally:
            del self._making[key]

    def _keep(self, key: _Key, stage: Stage) -> None:
        self._ready[key] = stage
        while len(self._ready) > self._limit:
            self._ready.popitem(last=False)
