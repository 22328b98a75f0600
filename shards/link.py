"""One authenticated connection, from the router's end, and the calls in flight on it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from shardserve.batching.errors import (
    DeadlineExceeded,
    ResourceExhausted,
    ServingError,
    Unavailable,
)
from shardserve.shards.calls import AnyCall
from shardserve.shards.exchange import Exchange
from shardserve.shards.frames import Frame, FrameReader, Kind, bare_fields
from shardserve.shards.handshake import (
    HANDSHAKE_FRAME_BYTES,
    NONCE_BYTES,
    ClientHandshake,
    Credentials,
)
from shardserve.shards.in_flight import InFlight
from shardserve.shards.outbox import Outbox
from shardserve.shards.timers import Alarm, Pulse
from shardserve.shards.wire import (
    LOOKUPS,
    PONG,
    decode_error,
    encode_cancel,
)

_HANDSHAKE_KINDS: Final = (Kind.CHALLENGE, Kind.WELCOME, Kind.REFUSAL)
_EVERYWHERE: Final = (Kind.ERROR, Kind.PING, Kind.PONG)


@dataclass(frozen=True)
class LinkLimits:
    """Bounds of one connection, in bytes and seconds."""

    max_frame: int = 1 << 30
    max_in_flight: int = 8192
    #: What may pile up towards a shard that does not read.
    max_unsent: int = 1 << 30
    #: For connecting and the handshake together.
    connect_seconds: float = 5.0
    #: A shard that stays silent for three times as long is taken for dead.
    keepalive_seconds: float = 5.0


class Link(asyncio.BufferedProtocol):
    """A connection's life: the handshake, then calls, then the end, once and for good.

    `name` is what messages call the server, `exchange` what it is asked. When the connection is
    lost, each of its calls fails with Unavailable, after `is_open` has become False.
    """

    def __init__(
        self,
        name: str,
        credentials: Credentials,
        limits: LinkLimits,
        on_end: Callable[[Link, ServingError], None] = lambda link, reason: None,
        exchange: Exchange[Any, Any] = LOOKUPS,
    ) -> None:
        loop = asyncio.get_running_loop()
        #: Set to None when calls can be sent, or to the reason why that will never be.
        self.opened: asyncio.Future[ServingError | None] = loop.create_future()
        #: Set to the reason when the connection is no more.
        self.closed: asyncio.Future[ServingError] = loop.create_future()
        self.is_open = False
        #: Calls that have neither ended nor been cancelled.
        self.calls = InFlight()
        self._name = name
        self._exchange = exchange
        self._limits = limits
        self._loop = loop
        self._on_end = on_end
        self._reader = FrameReader(_HANDSHAKE_KINDS, HANDSHAKE_FRAME_BYTES)
        self.get_buffer = self._reader.get_buffer  # type: ignore[method-assign]
        self._handshake = ClientHandshake(credentials, limits.max_frame, os.urandom(NONCE_BYTES))
        #: The longest frame the shard accepts.
        self._peer_limit = 0
        self._last_number = 0
        #: How many calls there may be before `_check` has to look more closely.
        self._places = 0
        self._connected = False
        self._corked = False
        self._draining = False
        self._alarm = Alarm(self._ring)
        self._pulse = Pulse(limits.keepalive_seconds, self._fell_silent)

    # Calls

    def send(self, call: AnyCall) -> None:
        """Take over a call; it ends by its deadline, by a reply or by an error."""
        call.holder = self
        calls, deadline = self.calls, call.deadline
        seconds_left = deadline - time.monotonic()
        number = self._last_number = self._last_number + 1
        try:
            if seconds_left <= 0.0 or len(calls) >= self._places:
                self._check(seconds_left)
            frame, nbytes = self._exchange.encode_request(number, seconds_left, call.request)
            if nbytes > self._peer_limit:
                raise ResourceExhausted(
                    f"{self._name}: request of {nbytes} bytes, the limit is {self._peer_limit}"
                )
        except ServingError as error:
            # The traceback has this frame and its callers', which know who is told of it: a cycle.
            call.fail(error.with_traceback(None))
            return
        call.number = number
        calls[number] = call
        if deadline < self._alarm.when:
            self._alarm.no_later_than(deadline)
        if len(calls) == 1:
            self._outbox.send(frame, nbytes)
            return
        # The connection is busy: more is likely to follow within this turn of the loop.
        self._outbox.extend(frame, nbytes)
        if not self._corked:
            self._cork()

    def forget(self, call: AnyCall) -> None:
        """Drop a cancelled call, and tell the shard."""
        if self.calls.take(call.number) is not None:
            self._outbox.put(encode_cancel(call.number))
            self._cork()
            self._end_if_drained()

    def drain(self) -> None:
        """Close as soon as no call is in flight. The owner sends no more."""
        self._draining = True
        self._end_if_drained()

    def close(self, reason: ServingError) -> None:
        """End the connection. Calls in flight fail with Unavailable for `reason`."""
        self._end(reason)

    def _check(self, seconds_left: float) -> None:
        if seconds_left <= 0.0:
            raise DeadlineExceeded(f"{self._name}: no time was left to ask")
        if not self.is_open:
            raise Unavailable(f"{self._name}: not connected")
        if len(self.calls) >= self._limits.max_in_flight:
            raise Unavailable(f"{self._name}: {len(self.calls)} requests are in flight already")
        unsent = self._transport.get_write_buffer_size() + self._outbox.nbytes
        if unsent > self._limits.max_unsent:
            raise Unavailable(f"{self._name}: does not read, {unsent} bytes are unsent")

    def _cork(self) -> None:
        if not self._corked:
            self._corked = True
            self._loop.call_soon(self._uncork)

    def _uncork(self) -> None:
        self._corked = False
        self._outbox.flush()

    def _ring(self) -> None:
        expired = self.calls.take_expired(time.monotonic())
        self._alarm.no_later_than(self.calls.earliest_deadline())
        for call in expired:
            call.fail(DeadlineExceeded(f"{self._name}: no reply within the deadline"))
        self._end_if_drained()

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connected = True
        self._outbox = Outbox(self._transport)
        self._outbox.put(self._handshake.hello())
        self._outbox.flush()

    def buffer_updated(self, nbytes: int) -> None:
        self._pulse.keepalive.heard = True
        calls, exchange = self.calls, self._exchange
        reply_kind, decode_reply = exchange.reply, exchange.decode_reply
        try:
            for frame in self._reader.received(nbytes):
                if frame[0] is reply_kind:
                    reply = decode_reply(frame)
                    call = calls.pop(frame[1], None)
                    if call is not None:
                        call.succeed(reply)
                else:
                    self._handle(frame)
        except ServingError as error:
            self._end(error)
        if self._draining:
            self._end_if_drained()

    def pause_writing(self) -> None:
        self._places = 0

    def resume_writing(self) -> None:
        self._places = self._limits.max_in_flight if self.is_open else 0

    def eof_received(self) -> None:
        self._end(Unavailable("the server closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(Unavailable(f"connection lost: {exc or 'closed'}"))

    # Reading

    def _handle(self, frame: Frame) -> None:
        match frame[0]:
            case Kind.ERROR:
                error = decode_error(frame)
                call = self.calls.pop(frame[1], None)
                if call is not None:
                    call.fail(error)
            case Kind.PING:
                bare_fields(frame)
                self._outbox.put(PONG)
                self._cork()
            case Kind.PONG:
                bare_fields(frame)
            case _:
                self._shake_hands(frame)

    def _shake_hands(self, frame: Frame) -> None:
        self._outbox.put(self._handshake.receive(frame))
        self._outbox.flush()
        peer_limit = self._handshake.peer_limit
        if peer_limit is not None:
            self._reader.accept((self._exchange.reply, *_EVERYWHERE), self._limits.max_frame)
            self._peer_limit = peer_limit
            self._places = self._limits.max_in_flight
            self._pulse.start(self._transport, self._outbox)
            self.is_open = True
            if not self.opened.done():
                self.opened.set_result(None)

    # The end

    def _fell_silent(self) -> None:
        self._end(Unavailable("the server fell silent"))

    def _end_if_drained(self) -> None:
        if self._draining and not self.calls:
            self._end(Unavailable("no longer needed"))

    def _end(self, reason: ServingError) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        self.is_open = False
        self._places = 0
        if not self.opened.done():
            self.opened.set_result(reason)
        self._alarm.cancel()
        self._pulse.stop()
        if self._connected:
            self._transport.abort()
        self._on_end(self, reason)
        for call in self.calls.take_all():
            call.fail(Unavailable(f"{self._name}: {reason.message}"))
