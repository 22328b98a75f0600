"""Under any program of replies, errors, cancels and losses, each call ends exactly once."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shardserve.batching.errors import (
    Code,
    DeadlineExceeded,
    Unavailable,
    error_of,
)
from shardserve.shards.calls import Call
from shardserve.shards.frames import FrameReader, Kind, bare_frame
from shardserve.shards.handshake import NONCE_BYTES, ServerHandshake
from shardserve.shards.link import Link, LinkLimits
from shardserve.shards.messages import LookupReply
from shardserve.shards.wire import (
    PING,
    decode_request,
    encode_error,
    encode_reply,
)
from tests.shards.memory import PAIRS
from tests.shards.plane import CREDENTIALS, Outcomes, gather, in_

MAX_IN_FLIGHT = 6


class ScriptedShard(asyncio.BufferedProtocol):
    """A shard's end that proves itself, notes what it is asked, and says what it is told to."""

    def __init__(self) -> None:
        self.asked: dict[int, int] = {}
        self.cancelled: set[int] = set()
        self.pongs = 0
        self._reader = FrameReader(Kind, 1 << 20)
        self._handshake = ServerHandshake(CREDENTIALS, 1 << 20, bytes(NONCE_BYTES))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        for frame in self._reader.received(nbytes):
            match frame[0]:
                case Kind.REQUEST:
                    self.asked[frame[1]] = int(decode_request(frame)[1].parts[0].rows[0])
                case Kind.CANCEL:
                    self.cancelled.add(frame[1])
                case Kind.PONG:
                    self.pongs += 1
                case _:
                    self.transport.write(self._handshake.receive(frame))


class LinkProgram(RuleBasedStateMachine):
    """Drives one `Link`. A call's tag is also the row it asks for."""

    transport = "memory"

    @initialize()
    def connect(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.shard = ScriptedShard()
        self.outcomes = Outcomes()
        self.calls: dict[int, Call] = {}
        self.cancelled: set[int] = set()
        self.ended: dict[int, type[object]] = {}
        self.loop.run_until_complete(self._connect())
        assert self.link.is_open

    async def _connect(self) -> None:
        limits = LinkLimits(max_in_flight=MAX_IN_FLIGHT)
        self.link = Link("shard 0", CREDENTIALS, limits)
        await PAIRS[self.transport](self.link, self.shard)
        assert await self.link.opened is None

    def _turn(self) -> None:
        """Let the loop do what there is to do."""

        async def turns() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def _end(self, tag: int, kind: type[object]) -> None:
        if tag not in self.ended and tag not in self.cancelled:
            self.ended[tag] = kind

    @rule(late=st.booleans())
    def submit(self, late: bool) -> None:
        tag = len(self.calls)
        refused = DeadlineExceeded if late else Unavailable
        if late or not self.link.is_open or len(self.link.calls) >= MAX_IN_FLIGHT:
            self.ended[tag] = refused
        call = Call(gather(tag), in_(-1.0 if late else 600.0), self.outcomes, tag)
        self.calls[tag] = call
        self.loop.run_until_complete(self._submit(call))

    async def _submit(self, call: Call) -> None:
        self.link.send(call)

    @precondition(lambda self: self.shard.asked)
    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.shard.asked)))
        row = self.shard.asked[number]
        buffers, _ = encode_reply(number, (np.array([row]),), 0.0, 0.0)
        self.shard.transport.writelines(buffers)
        if self.link.is_open:
            self._end(row, LookupReply)
        self._turn()

    @precondition(lambda self: self.shard.asked)
    @rule(data=st.data(), code=st.sampled_from([code for code in Code if code]))
    def fail(self, data: st.DataObject, code: Code) -> None:
        number = data.draw(st.sampled_from(sorted(self.shard.asked)))
        self.shard.transport.write(encode_error(number, error_of(code, "told to")))
        if self.link.is_open:
            self._end(self.shard.asked[number], type(error_of(code, "")))
        self._turn()

    @precondition(lambda self: self.shard.asked and len(self.calls) > 4)
    @rule(data=st.data(), kind=st.sampled_from([Kind.REPLY, Kind.ERROR]))
    def malformed(self, data: st.DataObject, kind: Kind) -> None:
        number = data.draw(st.sampled_from(sorted(self.shard.asked)))
        self.shard.transport.write(bare_frame(kind, number, "malformed"))
        self._turn()
        self._all_end()

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(sorted(self.calls)))
        self.loop.run_until_complete(self._cancel(self.calls[tag]))
        if tag not in self.ended:
            self.cancelled.add(tag)
        self._turn()

    async def _cancel(self, call: Call) -> None:
        call.cancel()

    @precondition(lambda self: self.link.calls)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.link.calls)))
        call = self.link.calls[number]
        call.deadline = time.monotonic()
        self._end(call.tag, DeadlineExceeded)
        self.loop.run_until_complete(self._ring())

    async def _ring(self) -> None:
        self.link._ring()

    @rule()
    def ping(self) -> None:
        before = self.shard.pongs
        self.shard.transport.write(PING)
        self._turn()
        assert self.shard.pongs == before + self.link.is_open

    @rule()
    def turn(self) -> None:
        self._turn()

    @precondition(lambda self: len(self.calls) > 4)
    @rule(how=st.sampled_from(["shard closes", "shard aborts", "shard misspeaks", "we close"]))
    def lose(self, how: str) -> None:
        match how:
            case "shard closes":
                self.shard.transport.close()
            case "shard aborts":
                self.shard.transport.abort()
            case "shard misspeaks":
                self.shard.transport.write(b"x" * 64)
            case _:
                self.link.close(Unavailable("closed by the test"))
        self._turn()
        self._all_end()

    @precondition(lambda self: len(self.calls) > 4)
    @rule()
    def drain(self) -> None:
        self.link.drain()
        self._turn()

    def _all_end(self) -> None:
        assert not self.link.is_open
        assert self.link.closed.done()
        for tag in self.calls:
            self._end(tag, Unavailable)

    @invariant()
    def each_call_has_ended_as_it_should_or_is_in_flight(self) -> None:
        for tag in self.calls:
            got = self.outcomes.ended.get(tag, [])
            if tag in self.cancelled:
                assert got == []
            elif tag in self.ended:
                (outcome,) = got
                assert type(outcome) is self.ended[tag]
                if isinstance(outcome, LookupReply):
                    assert outcome.results[0].tolist() == [tag]
                elif isinstance(outcome, Unavailable):
                    assert "shard 0" in outcome.message or outcome.message == "told to"
                assert self.calls[tag].holder is None
            else:
                assert got == []
                assert self.link.calls[self.calls[tag].number] is self.calls[tag]
        open_calls = len(self.calls) - len(self.ended) - len(self.cancelled)
        assert len(self.link.calls) == open_calls

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        self._turn()
        if self.link.is_open:
            asked = {self.calls[tag].number for tag in self.cancelled} - {0}
            assert asked <= self.shard.cancelled
        self.link.close(Unavailable("the test is over"))
        self._turn()
        self._all_end()
        self.each_call_has_ended_as_it_should_or_is_in_flight()
        self.shard.transport.abort()
        self._turn()
        self.loop.close()


class SocketLinkProgram(LinkProgram):
    transport = "socket"


TestOverMemory = LinkProgram.TestCase
TestOverMemory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOverSockets = SocketLinkProgram.TestCase
TestOverSockets.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
