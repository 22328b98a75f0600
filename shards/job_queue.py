"""One connection's large requests, on the threads that all connections of a shard share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from shardserve.batching.errors import ResourceExhausted, Unavailable
from shardserve.shards.exchange import Performed


class _Queued(NamedTuple):
    future: Future[Performed]
    cost: int


class JobQueue:
    """Jobs that are queued or at work, bounded in number and in what they cost together.

    `done` is called on the event loop with each job's number and finished future, unless the job
    has been forgotten.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        max_jobs: int,
        max_cost: int,
        done: Callable[[int, Future[Performed]], None],
    ) -> None:
        self._pool = pool
        self._max_jobs = max_jobs
        self._max_cost = max_cost
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._queued: dict[int, _Queued] = {}
        self._cost = 0

    def __len__(self) -> int:
        return len(self._queued)

    def __contains__(self, number: int) -> bool:
        return number in self._queued

    def add(self, number: int, cost: int, job: Callable[[], Performed]) -> None:
        """Queue a job. Raises ResourceExhausted if it never fits, Unavailable if not now."""
        if cost > self._max_cost:
            raise ResourceExhausted(f"request costs {cost} bytes, the limit is {self._max_cost}")
        if self._cost + cost > self._max_cost or len(self._queued) >= self._max_jobs:
            raise Unavailable(f"the shard has {len(self._queued)} requests of this router queued")
        future = self._pool.submit(job)
        self._queued[number] = _Queued(future, cost)
        self._cost += cost
        future.add_done_callback(partial(self._finished, number))

    def forget(self, number: int) -> None:
        """Do not start a job, or drop its result. Does nothing for a job that is not there."""
        queued = self._queued.pop(number, None)
        if queued is not None:
            self._cost -= queued.cost
            queued.future.cancel()

    def forget_all(self) -> None:
        """Forget every job."""
        for number in list(self._queued):
            self.forget(number)

    def _finished(self, number: int, future: Future[Performed]) -> None:
        """On the thread that did the job, or where it was cancelled."""
        if self._has(number, future):
            self._loop.call_soon_threadsafe(self._deliver, number, future)

    def _deliver(self, number: int, future: Future[Performed]) -> None:
        if self._has(number, future):
            self.forget(number)
            self._done(number, future)

    def _has(self, number: int, future: Future[Performed]) -> bool:
        queued = self._queued.get(number)
        return queued is not None and queued.future is future
