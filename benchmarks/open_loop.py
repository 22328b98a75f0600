"""An open-loop load generator: a process of its own that sends when it was told to, come what may.

Arrivals are drawn in advance and latency counts from the intended time of sending, so a server
that stalls cannot slow its load down and hide the stall ("coordinated omission", Gil Tene). The
bodies are encoded before, the replies kept and judged after, so that a request costs this process
some 30 us: on a small machine the load must not be what is measured.

`python -m benchmarks.open_loop` reads msgpack messages from its standard input and answers each on
its standard output; `benchmarks.serving_load` is the other end. Messages in: one `Target` as a
map with "bodies" (a list of bytes), then any number of schedules:

    {"arrivals": float64 bytes, "give_up": seconds}     open loop, times from the start
    {"clients": n, "seconds": s}                         closed loop, n always in flight

Each schedule is answered by {"latencies", "late": float64 bytes, "replies": [bytes or str],
"seconds", "cpu_seconds"}: entry i belongs to body i % len(bodies); a reply that is a str is the
error that came instead, and its latency is NaN.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, BinaryIO, Protocol, cast

import grpc
import httptools
import msgpack
import numpy as np
import uvloop

from benchmarks.workloads import FloatArray

#: libuv's timers count in milliseconds; asking for less would spin.
TICK = 0.001
#: Replies that are still awaited after the last request was sent.
DRAIN_SECONDS = 5.0
NEVER_SENT = "never sent: the server fell too far behind"
NEVER_ANSWERED = "no reply"

Reply = bytes | str
OnReply = Callable[[Reply], None]


class Sender(Protocol):
    """Sends a body at once, and calls `on_reply` once, with the reply or the error's text."""

    def send(self, body: bytes, on_reply: OnReply) -> None: ...


class HttpSender:
    """POSTs over keep-alive connections, one request at a time on each.

    A request takes the connection that was free last; if none is, it waits for one.
    """

    def __init__(self, connections: Sequence[HttpConnection]) -> None:
        self._free = list(connections)
        self._waiting: deque[tuple[bytes, OnReply]] = deque()
        for connection in connections:
            connection.on_free = self._on_free

    @classmethod
    async def connect(cls, host: str, port: int, path: str, connections: int) -> HttpSender:
        """Open every connection before the load begins."""
        loop = asyncio.get_running_loop()
        make = partial(HttpConnection, f"{host}:{port}", path)
        opened = [await loop.create_connection(make, host, port) for _ in range(connections)]
        return cls([protocol for _, protocol in opened])

    def send(self, body: bytes, on_reply: OnReply) -> None:
        if self._free:
            self._free.pop().post(body, on_reply)
        else:
            self._waiting.append((body, on_reply))

    def _on_free(self, connection: HttpConnection) -> None:
        if self._waiting:
            connection.post(*self._waiting.popleft())
        else:
            self._free.append(connection)


class HttpConnection(asyncio.Protocol):
    """One HTTP/1.1 connection. A lost one answers each further request with its error."""

    def __init__(self, authority: str, path: str) -> None:
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {authority}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._on_reply: OnReply | None = None
        self._lost = ""
        self.on_free: Callable[[HttpConnection], None] = lambda _: None

    def post(self, body: bytes, on_reply: OnReply) -> None:
        self._on_reply = on_reply
        if self._lost:
            self._end(self._lost)
            return
        self._body: list[bytes] = []
        self._transport.writelines((self._head, b"%d\r\n\r\n" % len(body), body))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = f"connection lost: {error or 'closed by the server'}"
        if self._on_reply is not None:
            self._end(self._lost)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, status = b"".join(self._body), self._parser.get_status_code()
        self._end(body if status == 200 else f"{status}: {body[:300].decode(errors='replace')}")

    def _end(self, reply: Reply) -> None:
        on_reply, self._on_reply = self._on_reply, None
        if on_reply is not None:
            on_reply(reply)
            self.on_free(self)


class GrpcSender:
    """Calls one unary method with bytes that are serialised already."""

    def __init__(self, address: str, method: str) -> None:
        self._channel = grpc.aio.insecure_channel(
            address, options=[("grpc.max_receive_message_length", -1)]
        )
        self._call = self._channel.unary_unary(method)
        self._running: set[asyncio.Task[None]] = set()

    def send(self, body: bytes, on_reply: OnReply) -> None:
        task = asyncio.create_task(self._ask(body, on_reply))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _ask(self, body: bytes, on_reply: OnReply) -> None:
        try:
            on_reply(await self._call(body))
        except grpc.aio.AioRpcError as error:
            on_reply(f"{error.code().name}: {error.details()}")


@dataclass
class Run:
    """What one schedule brought. Entry i of each list belongs to request i."""

    bodies: Sequence[bytes]
    sender: Sender
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    answered: int = 0
    _oldest: int = 0

    def send(self, due: float, then: Callable[[], None] = lambda: None) -> None:
        """Send the next body; its latency counts from `due`."""
        number = len(self.replies)
        self.late.append(time.perf_counter() - due)
        self.latencies.append(float("nan"))
        self.replies.append(NEVER_ANSWERED)

        def on_reply(reply: Reply) -> None:
            if isinstance(reply, bytes):
                self.latencies[number] = time.perf_counter() - due
            self.replies[number] = reply
            self.answered += 1
            then()

        self.sender.send(self.bodies[number % len(self.bodies)], on_reply)

    def oldest_unanswered(self) -> int:
        """The first request without a reply; the number of requests sent if there is none."""
        while self._oldest < len(self.replies) and self.replies[self._oldest] != NEVER_ANSWERED:
            self._oldest += 1
        return self._oldest

    def all_answered(self) -> bool:
        return self.answered == len(self.replies)


async def open_loop(run: Run, arrivals: FloatArray, give_up: float) -> None:
    """Send each request at its time. Stops early once one has waited for `give_up` seconds."""
    start = time.perf_counter() + 2 * TICK
    due: list[float] = (start + arrivals).tolist()
    sent = 0
    while sent < len(due):
        now = time.perf_counter()
        while sent < len(due) and due[sent] <= now:
            run.send(due[sent])
            sent += 1
        oldest = run.oldest_unanswered()
        if oldest < sent and now - due[oldest] > give_up:
            break
        if sent < len(due):
            await asyncio.sleep(max(TICK, due[sent] - now))
    await _drain(run)
    run.replies += [NEVER_SENT] * (len(due) - sent)
    run.latencies += [float("nan")] * (len(due) - sent)


async def closed_loop(run: Run, clients: int, seconds: float) -> None:
    """Keep `clients` requests in flight: what the server can do at most."""
    end = time.perf_counter() + seconds

    def again() -> None:
        now = time.perf_counter()
        if now < end:
            run.send(now, again)

    for _ in range(clients):
        again()
    await asyncio.sleep(seconds)
    await _drain(run)


async def _drain(run: Run) -> None:
    for waited in count():
        if run.all_answered() or waited * TICK > DRAIN_SECONDS:
            return
        await asyncio.sleep(TICK)


async def serve_schedules(source: msgpack.Unpacker, answers: BinaryIO) -> None:
    """Carry out the schedules that come in, one after the other, until the input ends."""
    target: dict[str, Any] = next(source)
    sender = await _sender(target)
    # Nothing here makes cycles, and a collection would be seen as the server's latency.
    gc.freeze()
    gc.disable()
    _write(answers, {"ready": True})
    while (schedule := await asyncio.to_thread(next, source, None)) is not None:
        run = Run(target["bodies"], sender)
        started, cpu = time.perf_counter(), time.process_time()
        if "arrivals" in schedule:
            await open_loop(run, np.frombuffer(schedule["arrivals"]), schedule["give_up"])
        else:
            await closed_loop(run, schedule["clients"], schedule["seconds"])
        _write(
            answers,
            {
                "latencies": np.array(run.latencies).tobytes(),
                "late": np.array(run.late).tobytes(),
                "replies": run.replies,
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - cpu,
            },
        )


async def _sender(target: dict[str, Any]) -> Sender:
    if target["wire"] == "grpc":
        return GrpcSender(f"{target['host']}:{target['port']}", target["path"])
    return await HttpSender.connect(
        target["host"], target["port"], target["path"], target["connections"]
    )


def _write(answers: BinaryIO, message: dict[str, Any]) -> None:
    answers.write(msgpack.packb(message))
    answers.flush()


def main() -> None:
    """The process."""
    # Raw: a buffered read would wait for more than there is.
    stdin: Any = sys.stdin.buffer
    source = msgpack.Unpacker(stdin.raw, read_size=1 << 20, max_buffer_size=1 << 30)
    uvloop.run(serve_schedules(source, sys.stdout.buffer))


if __name__ == "__main__":
    main()
