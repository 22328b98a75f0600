"""Ask several servers at once, and wait for all of them, or for the first error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar, cast

from shardserve.batching.errors import Cancelled
from shardserve.shards.calls import AnyCall, SubmitsCalls
from shardserve.shards.messages import LookupReply, LookupRequest, ShardChannel

Q = TypeVar("Q")
P = TypeVar("P")


async def fan_out(
    asked: Sequence[tuple[ShardChannel | SubmitsCalls[LookupRequest, LookupReply], LookupRequest]],
    deadline: float,
) -> list[LookupReply]:
    """The replies, in the order of `asked`; or the first error, once the others are cancelled.

    `deadline` is on `time.monotonic`. When the awaiting task is cancelled, so is every request
    that is still on its way; each shard concerned is told. A channel that has `submit` costs no
    task of its own.
    """
    if not asked:
        return []
    gathering = _Gathering(len(asked))
    outcome = gathering.outcome
    started: list[AnyCall | asyncio.Task[LookupReply]] = []
    try:
        for tag, (channel, request) in enumerate(asked):
            submit = getattr(channel, "submit", None)
            if submit is not None:
                started.append(submit(request, deadline, gathering, tag))
            else:
                lookup = cast("ShardChannel", channel).lookup(request, deadline)
                started.append(gathering.start_task(lookup, tag))
            if outcome.done():
                break
        return await outcome
    except BaseException:
        _give_up(started, gathering)
        # The error's traceback has this frame, which would be in a cycle with what has the error.
        del started, gathering, outcome
        raise


async def ask(channel: SubmitsCalls[Q, P], request: Q, deadline: float) -> P:
    """The reply to one call. Errors and cancellation are as `fan_out` has them."""
    (reply,) = await fan_out([(cast(Any, channel), cast(Any, request))], deadline)
    return cast(P, reply)


def _give_up(started: Sequence[AnyCall | asyncio.Task[Any]], gathering: _Gathering) -> None:
    for call in started:
        call.cancel()
    gathering.abandon()


class _Gathering:
    """The sink of all calls of one fan-out."""

    def __init__(self, count: int) -> None:
        self.outcome: asyncio.Future[list[LookupReply]]
        self.outcome = asyncio.get_running_loop().create_future()
        self._replies: list[Any] = [None] * count
        self._missing = count

    def replied(self, tag: int, reply: LookupReply) -> None:
        self._replies[tag] = reply
        self._missing -= 1
        if not self._missing and not self.outcome.done():
            self.outcome.set_result(self._replies)

    def failed(self, tag: int, error: BaseException) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def start_task(self, lookup: Any, tag: int) -> asyncio.Task[LookupReply]:
        task: asyncio.Task[LookupReply] = asyncio.get_running_loop().create_task(lookup)
        task.add_done_callback(partial(self._task_done, tag))
        return task

    def _task_done(self, tag: int, task: asyncio.Task[LookupReply]) -> None:
        if task.cancelled():
            self.failed(tag, Cancelled("a lookup was cancelled"))
        elif error := task.exception():
            self.failed(tag, error)
        else:
            self.replied(tag, task.result())

    def abandon(self) -> None:
        """Nobody awaits the outcome; an error in it was told to the awaiting task, or is moot."""
        if self.outcome.done() and not self.outcome.cancelled():
            self.outcome.exception()
