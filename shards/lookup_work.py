"""Lookups at their server: small ones at once, large ones on the server's threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from shardserve.shards.exchange import Exchange, Performed
from shardserve.shards.job_queue import JobQueue
from shardserve.shards.jobs import LookupExecutor, cost_of, perform
from shardserve.shards.messages import LookupReply, LookupRequest
from shardserve.shards.wire import LOOKUPS
from shardserve.shards.work import Done, ServerLimits


class LookupService:
    """Answers lookups with `executor`; `threads` is how many large ones are worked on at once."""

    exchange: Exchange[LookupRequest, LookupReply] = LOOKUPS

    def __init__(self, executor: LookupExecutor, threads: int) -> None:
        self._executor = executor
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lookup")

    def new_work(self, limits: ServerLimits, done: Done) -> LookupWork:
        """See `Service.new_work`."""
        return LookupWork(self._executor, self._pool, limits, done)

    async def drain(self) -> None:
        """See `Service.drain`; lookups wait for nothing but threads."""

    def close(self) -> None:
        """See `Service.close`."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class LookupWork(JobQueue):
    """One connection's lookups. Implements `Work`."""

    def __init__(
        self, executor: LookupExecutor, pool: ThreadPoolExecutor, limits: ServerLimits, done: Done
    ) -> None:
        super().__init__(pool, limits.max_jobs, limits.max_job_cost, done)
        self._executor = executor
        self._inline_cost = limits.inline_cost

    def begin(
        self, number: int, request: LookupRequest, arrived: float, deadline: float
    ) -> Performed | None:
        """See `Work.begin`."""
        cost = cost_of(self._executor, request)
        if cost <= self._inline_cost:
            return perform(self._executor, request, arrived, deadline)
        self.add(number, cost, partial(perform, self._executor, request, arrived, deadline))
        return None
