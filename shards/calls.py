"""One request on its way to a shard or a stage actor, and who wants to know how it ends.

Callbacks, not tasks and futures: a fan-out to many shards wakes its waiter once, when the last
reply is there. Everything here belongs to one event loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from shardserve.batching.errors import ServingError, Unavailable

Q = TypeVar("Q")
P = TypeVar("P")
_Asked = TypeVar("_Asked", contravariant=True)
_Told = TypeVar("_Told", contravariant=True)
_Reply = TypeVar("_Reply", covariant=True)


class Sink(Protocol[_Told]):
    """Told how calls end.

    For each call exactly one of the two, exactly once, and never after `Call.cancel`; perhaps
    before the `submit` that started the call returns. `tag` is what the call was submitted with.
    Must neither raise nor cancel other calls.
    """

    def replied(self, tag: int, reply: _Told) -> None:
        """The call succeeded."""
        ...

    def failed(self, tag: int, error: ServingError) -> None:
        """The call failed for good."""
        ...


class Holder(Protocol):
    """Where a call is at the moment: in flight on a connection, or waiting for one."""

    def forget(self, call: AnyCall) -> None:
        """Let go of a call that was cancelled, and tell the server if it knows of it."""
        ...


class SubmitsCalls(Protocol[_Asked, _Reply]):
    """What `fan_out` needs of a channel to do without a task for each request."""

    def submit(self, request: _Asked, deadline: float, sink: Sink[_Reply], tag: int) -> AnyCall:
        """Start a call; it ends in `sink`. Never raises for what befalls the call."""
        ...


class _Nobody:
    """The sink of a call that has ended."""

    def replied(self, tag: int, reply: Any) -> None:
        raise AssertionError("a call ends once")

    def failed(self, tag: int, error: ServingError) -> None:
        raise AssertionError("a call ends once") from error


_NOBODY = _Nobody()


class Call(Generic[Q, P]):
    """A request, until it ends: by a reply, by an error, or by being cancelled.

    It lets go of its sink then. Sinks keep their calls, and a cycle of the two would keep request
    and reply until the garbage collector comes, which stops the whole process for tens of ms.
    """

    #: Who has it at the moment; None once it has ended.
    holder: Holder | None = None
    #: Its number at the holder.
    number = 0
    #: How many replicas were Unavailable.
    failures = 0

    def __init__(
        self,
        request: Q,
        deadline: float,
        sink: Sink[P],
        tag: int,
        retry: Callable[[Call[Q, P], Holder | None], bool] | None = None,
    ) -> None:
        self.request = request
        self.deadline = deadline
        self.sink = sink
        self.tag = tag
        #: Asked, with the holder it had, when a replica was Unavailable; True says that the call
        #: goes on elsewhere.
        self.retry = retry

    def succeed(self, reply: P) -> None:
        """End with a reply. For the holder, which has let go of the call."""
        self.holder = None
        self._let_go().replied(self.tag, reply)

    def fail(self, error: ServingError) -> None:
        """End with an error, or go on elsewhere. For the holder, which has let go of the call."""
        holder, self.holder = self.holder, None
        if self.retry and isinstance(error, Unavailable) and self.retry(self, holder):
            return
        self._let_go().failed(self.tag, error)

    def end(self, error: ServingError) -> None:
        """End with an error for good. For the holder, which has let go of the call."""
        self.holder = None
        self._let_go().failed(self.tag, error)

    def cancel(self) -> None:
        """Nobody waits any more. Does nothing to a call that has ended."""
        if self.holder is not None:
            holder, self.holder = self.holder, None
            self._let_go()
            holder.forget(self)

    def _let_go(self) -> Sink[P]:
        sink, self.sink = self.sink, _NOBODY
        return sink


AnyCall = Call[Any, Any]
