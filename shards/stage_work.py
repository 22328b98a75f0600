"""Stage requests at their server: each a task on the event loop, until its stage has answered."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import NamedTuple, Protocol

from shardserve.batching.errors import (
    Cancelled,
    Internal,
    ResourceExhausted,
    ServingError,
    Unavailable,
)
from shardserve.shards.exchange import Exchange, Performed
from shardserve.shards.stage_messages import StageReply, StageRequest
from shardserve.shards.stage_wire import STAGES
from shardserve.shards.work import Done, ServerLimits

logger = logging.getLogger(__name__)


class StageExecutor(Protocol):
    """What runs stages. Called on the event loop, and must not block it.

    The arrays that `run` returns are sent as they are, later: they must not change.
    """

    async def run(self, request: StageRequest, arrived: float, deadline: float) -> StageReply:
        """The stage's outputs, by the deadline. Raises a `ServingError` where there are none.

        Times are on `time.monotonic`. Cancelling the awaiting task withdraws the request.
        """
        ...

    async def drain(self) -> None:
        """Refuse what comes, and return when all that was accepted has ended."""
        ...

    def close(self) -> None:
        """Nothing runs any more: let go of what it takes."""
        ...


class StageService:
    """Answers stage requests with `executor`. Implements `Service`."""

    exchange: Exchange[StageRequest, StageReply] = STAGES

    def __init__(self, executor: StageExecutor) -> None:
        self._executor = executor

    def new_work(self, limits: ServerLimits, done: Done) -> StageWork:
        """See `Service.new_work`."""
        return StageWork(self._executor, limits, done)

    async def drain(self) -> None:
        """See `Service.drain`."""
        await asyncio.sleep(0)  # What has just come gets its turn to be accepted.
        await self._executor.drain()

    def close(self) -> None:
        """See `Service.close`."""
        self._executor.close()


class _Begun(NamedTuple):
    task: asyncio.Task[Performed]
    nbytes: int


class StageWork:
    """One connection's stage requests, bounded in number and in bytes. Implements `Work`."""

    def __init__(self, executor: StageExecutor, limits: ServerLimits, done: Done) -> None:
        self._executor = executor
        self._limits = limits
        self._done = done
        self._begun: dict[int, _Begun] = {}
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._begun)

    def __contains__(self, number: int) -> bool:
        return number in self._begun

    def begin(
        self, number: int, request: StageRequest, arrived: float, deadline: float
    ) -> Performed | None:
        """See `Work.begin`. Raises ResourceExhausted if it never fits, Unavailable if not now."""
        nbytes, limits = request.nbytes, self._limits
        if nbytes > limits.max_job_cost:
            raise ResourceExhausted(
                f"request of {nbytes} bytes, the limit is {limits.max_job_cost}"
            )
        if len(self._begun) >= limits.max_jobs or self._nbytes + nbytes > limits.max_job_cost:
            raise Unavailable(
                f"the stage actor has {len(self._begun)} requests of this router under way"
            )
        task = asyncio.get_running_loop().create_task(
            self._perform(number, request, arrived, deadline), name=request.stage
        )
        self._begun[number] = _Begun(task, nbytes)
        self._nbytes += nbytes
        task.add_done_callback(partial(self._ended, number))
        return None

    def forget(self, number: int) -> None:
        """See `Work.forget`."""
        begun = self._take(number)
        if begun is not None:
            begun.task.cancel()

    def forget_all(self) -> None:
        """See `Work.forget_all`."""
        for number in list(self._begun):
            self.forget(number)

    async def _perform(
        self, number: int, request: StageRequest, arrived: float, deadline: float
    ) -> Performed:
        try:
            reply = await self._executor.run(request, arrived, deadline)
        except ServingError:
            raise
        except asyncio.CancelledError:
            if number not in self._begun:
                raise
            raise Cancelled(f"stage {request.stage!r} gave the request up") from None
        except Exception as error:
            logger.exception("stage %r failed for a reason of the actor's own", request.stage)
            raise Internal("the stage actor failed, see its log") from error
        return reply.tensors, reply.queue_seconds, reply.run_seconds

    def _ended(self, number: int, task: asyncio.Task[Performed]) -> None:
        begun = self._begun.get(number)
        if begun is not None and begun.task is task:
            self._take(number)
            self._done(number, task)
        elif not task.cancelled():
            task.exception()  # Nobody wants to know.

    def _take(self, number: int) -> _Begun | None:
        begun = self._begun.pop(number, None)
        if begun is not None:
            self._nbytes -= begun.nbytes
        return begun
