"""One connection, from the server's end: the handshake, then requests and replies."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from typing import Final, Protocol, cast

from shardserve.batching.errors import ResourceExhausted, ServingError, Unavailable
from shardserve.shards.exchange import Performed
from shardserve.shards.frames import Frame, FrameReader, Kind, ProtocolError, bare_fields
from shardserve.shards.handshake import (
    HANDSHAKE_FRAME_BYTES,
    NONCE_BYTES,
    Credentials,
    ServerHandshake,
    refusal,
)
from shardserve.shards.outbox import Outbox
from shardserve.shards.timers import Pulse
from shardserve.shards.wire import PONG, encode_error
from shardserve.shards.work import Ended, ServerLimits, Service

logger = logging.getLogger(__name__)

_HANDSHAKE_KINDS: Final = (Kind.HELLO, Kind.PROOF)
_EVERYWHERE: Final = (Kind.CANCEL, Kind.PING, Kind.PONG)


class Host(Protocol):
    """What a session needs of its server."""

    service: Service
    credentials: Credentials
    limits: ServerLimits

    def joined(self, session: Session) -> bool:
        """A connection was made. False turns it away."""
        ...

    def left(self, session: Session) -> None:
        """The connection is no more."""
        ...


class Session(asyncio.BufferedProtocol):
    """Serves one router with its server's service.

    Each request that was read gets exactly one REPLY or ERROR, unless it is cancelled or the
    connection ends first.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._limits = host.limits
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(_HANDSHAKE_KINDS, HANDSHAKE_FRAME_BYTES)
        self.get_buffer = self._reader.get_buffer  # type: ignore[method-assign]
        self._handshake = ServerHandshake(
            host.credentials, host.limits.max_frame, os.urandom(NONCE_BYTES)
        )
        #: Requests that came while the router did not read its replies.
        self._held_back: deque[Frame] = deque()
        self._exchange = host.service.exchange
        self._jobs = host.service.new_work(host.limits, self._done)
        #: The longest frame the router accepts; 0 until it has proved itself.
        self._peer_limit = 0
        self._arrived = 0.0
        self._paused = False
        self._draining = False
        self._pulse = Pulse(host.limits.keepalive_seconds, self._fell_silent)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """Requests that are queued or at work."""
        return len(self._jobs)

    def drain(self) -> None:
        """Take no more requests, answer those there are, then close."""
        self._draining = True
        self._close_if_drained()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._limits.high_water)
        self._outbox = Outbox(self._transport)
        if self._host.joined(self):
            self._timer = self._loop.call_later(self._limits.handshake_seconds, self.abort)
        else:
            self.abort()

    def buffer_updated(self, nbytes: int) -> None:
        self._arrived = time.monotonic()
        self._pulse.keepalive.heard = True
        request = self._exchange.request
        try:
            for frame in self._reader.received(nbytes):
                if frame[0] is request:
                    self._accept(frame)
                else:
                    self._handle(frame)
        except ServingError as error:
            self._turn_away(error)
        self._outbox.flush()

    def pause_writing(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._transport.resume_reading()
        try:
            while self._held_back and not self._paused:
                self._accept(self._held_back.popleft())
        except ServingError as error:
            self._turn_away(error)
        self._outbox.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pulse.stop()
        self._jobs.forget_all()
        self._host.left(self)

    # Reading

    def _handle(self, frame: Frame) -> None:
        match frame[0]:
            case Kind.CANCEL:
                bare_fields(frame)
                self._jobs.forget(frame[1])
                self._close_if_drained()
            case Kind.PING:
                bare_fields(frame)
                self._outbox.put(PONG)
            case Kind.PONG:
                bare_fields(frame)
            case _:
                self._shake_hands(frame)

    def _shake_hands(self, frame: Frame) -> None:
        self._outbox.put(self._handshake.receive(frame))
        peer_limit = self._handshake.peer_limit
        if peer_limit is not None:
            self._peer_limit = peer_limit
            self._reader.accept((self._exchange.request, *_EVERYWHERE), self._limits.max_frame)
            if self._timer is not None:
                self._timer.cancel()
            self._pulse.start(self._transport, self._outbox)

    def _turn_away(self, error: ServingError) -> None:
        """The peer is a stranger, or does not speak as it should."""
        logger.warning("turned away %s: %s", self._transport.get_extra_info("peername"), error)
        if not self._peer_limit:
            self._outbox.put(refusal(error))
        self._outbox.flush()
        self._transport.close()

    # Requests

    def _accept(self, frame: Frame) -> None:
        if self._paused:
            self._held_back.append(frame)
            return
        seconds_left, request = self._exchange.decode_request(frame)
        number, arrived = frame[1], self._arrived
        if number in self._jobs:
            raise ProtocolError(f"request number {number} is in flight already")
        try:
            if self._draining:
                raise Unavailable("the server is about to stop")
            performed = self._jobs.begin(number, request, arrived, arrived + seconds_left)
        except ServingError as error:
            self._outbox.put(encode_error(number, error))
            return
        if performed is not None:
            self._reply_or_refuse(number, performed)

    def _done(self, number: int, ended: Ended) -> None:
        error = ended.exception()
        if isinstance(error, ServingError):
            # Not raised here: its traceback would have frames that know `ended`, and be in a cycle.
            self._outbox.put(encode_error(number, error))
        else:
            self._reply_or_refuse(number, ended.result())
        self._outbox.flush()
        self._close_if_drained()

    def _reply_or_refuse(self, number: int, performed: Performed) -> None:
        try:
            self._reply(number, performed)
        except ServingError as error:
            self._outbox.put(encode_error(number, error))

    def _reply(self, number: int, performed: Performed) -> None:
        frame, nbytes = self._exchange.encode_reply(number, *performed)
        if nbytes > self._peer_limit:
            raise ResourceExhausted(f"reply of {nbytes} bytes, the limit is {self._peer_limit}")
        self._outbox.extend(frame, nbytes)

    # The end

    def _fell_silent(self) -> None:
        logger.warning("a router fell silent")
        self.abort()

    def _close_if_drained(self) -> None:
        if self._draining and not self._jobs:
            self._outbox.flush()
            self._transport.close()
