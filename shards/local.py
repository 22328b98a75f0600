"""A channel to a shard in this process."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from contextlib import suppress

from shardserve.batching.errors import DeadlineExceeded
from shardserve.shards.jobs import LookupExecutor, cost_of, perform
from shardserve.shards.messages import LookupReply, LookupRequest

#: Requests up to this cost (bytes touched) are done on the event loop: a tenth of a millisecond,
#: about what handing over to a thread and back costs.
INLINE_COST = 1 << 20


class LocalChannel:
    """A `ShardChannel` without a wire: the same shard, the same answers, the same errors.

    A large request is done by `threads`, or by the event loop's own executor where there are none.
    When its caller stops waiting it is forgotten: it does not start, or its result is dropped.
    """

    def __init__(self, shard: LookupExecutor, threads: Executor | None = None) -> None:
        self._shard = shard
        self._threads = threads

    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        """See `ShardChannel.lookup`. `deadline` is on `time.monotonic`."""
        arrived = time.monotonic()
        if cost_of(self._shard, request) <= INLINE_COST:
            return LookupReply(*perform(self._shard, request, arrived, deadline))
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, perform, self._shard, request, arrived, deadline
        )
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline - arrived):
                    return LookupReply(*await work)
            # Not with that error as its context, which knows this task, which has this error.
            raise DeadlineExceeded("the deadline passed while the shard was at work")
        finally:
            # An error's traceback has this frame, which would be in a cycle with what has it.
            del work
