"""Lookups of many requests, of whatever models ask one shard, in few messages.

While as many messages are under way as may be, what comes waits, and goes as one: its parts are
appended, nothing is copied. So a busy shard is asked seldom and for much, and an idle one at once.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from shardserve.batching.errors import (
    DeadlineExceeded,
    InvalidArgument,
    OutOfRange,
    ResourceExhausted,
    ServingError,
    Unavailable,
    error_of,
)
from shardserve.batching.stage import StageCounts
from shardserve.shards.calls import Call, Sink, SubmitsCalls
from shardserve.shards.fan_out import fan_out
from shardserve.shards.in_flight import InFlight
from shardserve.shards.messages import LookupReply, LookupRequest
from shardserve.shards.stages import LookupBatching
from shardserve.shards.timers import Alarm

LookupCall = Call[LookupRequest, LookupReply]

#: Errors that may be one request's fault: its mates are asked again without it.
_ONE_REQUESTS = (InvalidArgument, OutOfRange, ResourceExhausted)


class BatchedChannel:
    """A `ShardChannel` over another, that merges calls while the shard is busy.

    A call ends by its own deadline, and is cancelled by itself; a message lasts as long as one of
    its calls does. An error that may be one call's fault is only that call's: the others are asked
    for again, each by itself. Raises Unavailable, besides what the channel raises, where too many
    wait. Belongs to one event loop.
    """

    def __init__(
        self, channel: SubmitsCalls[LookupRequest, LookupReply], batching: LookupBatching
    ) -> None:
        self._channel = channel
        self._batching = batching
        self._waiting: deque[_Message] = deque()
        #: Calls that have neither ended nor been cancelled, and where each of them is.
        self._calls = InFlight()
        self._messages: dict[int, _Message] = {}
        self._numbers = itertools.count(1)
        self._under_way = 0
        self._counts = StageCounts()
        self._is_advancing = False
        self._alarm = Alarm(lambda: self.expire(time.monotonic()))

    def submit(
        self, request: LookupRequest, deadline: float, sink: Sink[LookupReply], tag: int
    ) -> LookupCall:
        """Start a call; it ends in `sink`. See `SubmitsCalls`."""
        call = Call(request, deadline, sink, tag)
        if self._under_way < self._batching.max_in_flight_batches and not self._waiting:
            self._send(_Message([call]))
        else:
            self._enqueue(call)
        return call

    def counts(self) -> StageCounts:
        """What has been sent: messages as batches, calls as tasks; padding there is none."""
        return replace(
            self._counts,
            waiting_tasks=sum(len(message.calls) for message in self._waiting),
            running_batches=self._under_way,
        )

    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        """See `ShardChannel.lookup`."""
        (reply,) = await fan_out([(self, request)], deadline)
        return reply

    def forget(self, call: LookupCall) -> None:
        """Let go of a cancelled call, and tell the shard when nobody waits for its message."""
        if self._calls.take(call.number) is not None:
            self._left(call)
            self._advance()

    def expire(self, now: float) -> None:
        """End the calls whose deadline has come by `now`, on `time.monotonic`."""
        for call in self._calls.take_expired(now):
            self._count(expired=1)
            self._left(call)
            call.end(DeadlineExceeded("the deadline passed while a lookup was under way"))
        # Not before all of them have left: what waits is sent without those that are late too.
        self._advance()
        self._alarm.no_later_than(self._calls.earliest_deadline())

    def ended(self, message: _Message, outcome: LookupReply | ServingError) -> None:
        """A message that was under way has ended."""
        self._under_way -= 1
        if isinstance(outcome, LookupReply):
            for call, reply in message.shares(outcome):
                if self._take(call):
                    call.succeed(reply)
        elif len(message.calls) > 1 and isinstance(outcome, _ONE_REQUESTS):
            for call in [one for one in message.calls if one.number in self._calls]:
                self._send(_Message([call]))
        else:
            for call in message.calls:
                if self._take(call):
                    call.end(error_of(outcome.code, outcome.message))
        self._advance()

    def _take(self, call: LookupCall) -> bool:
        """Let go of a call that ends; False if it has ended already."""
        self._messages.pop(call.number, None)
        return self._calls.take(call.number) is not None

    def _enqueue(self, call: LookupCall) -> None:
        last = self._waiting[-1] if self._waiting else None
        if last is None or not last.has_room(call, self._batching):
            if len(self._waiting) >= self._batching.max_enqueued_batches:
                self._count(refused=1)
                call.end(
                    Unavailable(
                        f"{len(self._waiting)} batches of lookups wait for a shard, and "
                        f"max_enqueued_batches is {self._batching.max_enqueued_batches}"
                    )
                )
                return
            last = _Message([])
            self._waiting.append(last)
        last.add(call)
        self._hold(call, last)

    def _hold(self, call: LookupCall, message: _Message) -> None:
        call.holder = self
        if not call.number:
            call.number = next(self._numbers)
            self._calls[call.number] = call
        self._messages[call.number] = message
        self._alarm.no_later_than(call.deadline)

    def _send(self, message: _Message) -> None:
        self._under_way += 1
        self._count(batches=1, tasks=len(message.calls), rows=message.rows)
        for call in message.calls:
            self._hold(call, message)
        message.start(self._channel, self)

    def _advance(self) -> None:
        # What is refused at once ends within `_send`, and comes here again.
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self._waiting and self._under_way < self._batching.max_in_flight_batches:
                self._send(self._waiting.popleft())
        finally:
            self._is_advancing = False

    def _left(self, call: LookupCall) -> None:
        """A call has ended before its message did."""
        message = self._messages.pop(call.number)
        if not message.is_under_way:
            message.remove(call)
            if not message.calls:
                self._waiting.remove(message)
        elif not message.is_cancelled and not any(c.number in self._calls for c in message.calls):
            message.cancel()
            self._under_way -= 1

    def _count(self, **more: int) -> None:
        added = {name: getattr(self._counts, name) + value for name, value in more.items()}
        self._counts = replace(self._counts, **added)


class _Message:
    """Calls that go to the shard together. The sink of the one call that this is there."""

    def __init__(self, calls: Sequence[LookupCall]) -> None:
        self.calls: list[LookupCall] = []
        self.is_under_way = self.is_cancelled = False
        self.rows = 0
        self._nbytes = 0
        self._asked: LookupCall | None = None
        for call in calls:
            self.add(call)

    def has_room(self, call: LookupCall, batching: LookupBatching) -> bool:
        """Whether the call may go with these."""
        rows, nbytes = _size(call.request)
        return (
            self.rows + rows <= batching.max_batch_size
            and self._nbytes + nbytes <= batching.max_batch_bytes
        )

    def add(self, call: LookupCall) -> None:
        """Take a call in."""
        rows, nbytes = _size(call.request)
        self.rows += rows
        self._nbytes += nbytes
        self.calls.append(call)

    def remove(self, call: LookupCall) -> None:
        """Leave a call out."""
        rows, nbytes = _size(call.request)
        self.rows -= rows
        self._nbytes -= nbytes
        self.calls.remove(call)

    def start(
        self, channel: SubmitsCalls[LookupRequest, LookupReply], owner: BatchedChannel
    ) -> None:
        """Ask for all of them at once."""
        self.is_under_way = True
        self._owner = owner
        requests = [call.request for call in self.calls]
        deadline = max([call.deadline for call in self.calls])
        self._asked = channel.submit(_joined(requests), deadline, self, 0)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        assert self._asked is not None
        self.is_cancelled = True
        self._asked.cancel()

    def replied(self, tag: int, reply: LookupReply) -> None:
        """See `Sink`."""
        self._owner.ended(self, reply)

    def failed(self, tag: int, error: ServingError) -> None:
        """See `Sink`."""
        self._owner.ended(self, error)

    def shares(self, reply: LookupReply) -> Iterator[tuple[LookupCall, LookupReply]]:
        """Each call's own results."""
        if len(self.calls) == 1:
            yield self.calls[0], reply
            return
        part, score = 0, sum([len(call.request.parts) for call in self.calls])
        for call in self.calls:
            parts = part + len(call.request.parts)
            scores = score + len(call.request.scores)
            results = (*reply.results[part:parts], *reply.results[score:scores])
            yield call, LookupReply(results, reply.queue_seconds, reply.lookup_seconds)
            part, score = parts, scores


def _joined(requests: Sequence[LookupRequest]) -> LookupRequest:
    if len(requests) == 1:
        return requests[0]
    return LookupRequest(
        tuple([part for request in requests for part in request.parts]),
        tuple([score for request in requests for score in request.scores]),
    )


def _size(request: LookupRequest) -> tuple[int, int]:
    """Its rows and bytes; a query counts as a row."""
    rows = nbytes = 0
    for part in request.parts:
        rows += len(part.rows)
        nbytes += part.rows.nbytes
        for array in (part.offsets, part.weights):
            nbytes += 0 if array is None else array.nbytes
    for score in request.scores:
        rows += len(score.queries)
        nbytes += score.queries.nbytes
    return rows, nbytes
