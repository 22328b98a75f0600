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
import contextlib
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import msgpack
import numpy as np
import uvloop

from benchmarks.serving_senders import GrpcSender, HttpSender, Reply, Sender
from benchmarks.workloads import FloatArray

#: libuv's timers count in milliseconds; asking for less would spin.
TICK = 0.001
#: For how long replies are awaited after the last request was sent.
DRAIN_SECONDS = 5.0
NEVER_SENT = "never sent: the server fell too far behind"
NEVER_ANSWERED = "no reply"


@dataclass
class Run:
    """What one schedule brought. Entry i of each list belongs to request i."""

    bodies: Sequence[bytes]
    sender: Sender
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    answered: int = 0
    drain_seconds: float = DRAIN_SECONDS
    _oldest: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

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
            self._changed.set()
            then()

        self.sender.send(self.bodies[number % len(self.bodies)], on_reply)

    def oldest_unanswered(self) -> int:
        """The first request without a reply; the number of requests sent if there is none."""
        while self._oldest < len(self.replies) and self.replies[self._oldest] != NEVER_ANSWERED:
            self._oldest += 1
        return self._oldest

    async def drain(self) -> None:
        """Wait until every request has its reply, for `drain_seconds` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.drain_seconds):
                while self.answered < len(self.replies):
                    self._changed.clear()
                    await self._changed.wait()


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
    await run.drain()
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
    await run.drain()


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
