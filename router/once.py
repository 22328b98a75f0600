"""Values that are made once, off the event loop, and kept while they are asked for."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from shardserve.batching.errors import DeadlineExceeded
from shardserve.router.servable import RequestContext
from shardserve.router.session import TIMED_OUT, StageThreads

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class OnceCache(Generic[Key, Value]):
    """At most `limit` values, the ones used last, each made by `make` on a thread of `threads`.

    For one event loop.
    """

    def __init__(self, threads: StageThreads, make: Callable[[Key], Value], limit: int) -> None:
        self._threads = threads
        self._make = make
        self._limit = limit
        self._ready: OrderedDict[Key, Value] = OrderedDict()
        self._making: dict[Key, asyncio.Task[Value]] = {}

    def __len__(self) -> int:
        return len(self._ready)

    async def get(self, key: Key, context: RequestContext) -> Value:
        """The value. Requests that ask while it is being made wait for that.

        Raises DeadlineExceeded by the context's deadline, and what `make` raises.
        """
        value = self._ready.get(key)
        if value is not None:
            self._ready.move_to_end(key)
            return value
        return await self._wait(key, context)

    def prepare(self, key: Key) -> None:
        """Make a value now, on this thread."""
        self.put(key, self._make(key))

    def put(self, key: Key, value: Value) -> None:
        """Keep a value that was made elsewhere."""
        self._ready[key] = value
        while len(self._ready) > self._limit:
            self._ready.popitem(last=False)

    async def close(self) -> None:
        """Let go of all values, once those that are being made have been. Nobody may ask now."""
        await asyncio.gather(*self._making.values(), return_exceptions=True)
        self._ready.clear()

    async def _wait(self, key: Key, context: RequestContext) -> Value:
        making = self._making.get(key)
        if making is None:
            making = asyncio.ensure_future(self._made(key))
            self._making[key] = making
        left = None if context.deadline == math.inf else context.deadline - time.monotonic()
        try:
            # One request that gives up must not take the value from the others.
            return await asyncio.wait_for(asyncio.shield(making), left)
        except TimeoutError:
            raise DeadlineExceeded(TIMED_OUT) from None

    async def _made(self, key: Key) -> Value:
        try:
            value: Value = await self._threads.run(lambda: self._make(key))
            self.put(key, value)
            return value
        finally:
            del self._making[key]
