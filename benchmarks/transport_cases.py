"""What every subject of the `transport` benchmark does: the same gather, asked of 4 processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

SHARDS = 4
COLUMNS = 64
CORES = frozenset(os.sched_getaffinity(0))

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """Each shard replies with `rows` rows of 64 fp32; `depth` fan-outs are kept in flight."""

    name: str
    rows: int
    depth: int

    @property
    def wanted(self) -> Array:
        """The rows to ask for, int64."""
        return np.arange(self.rows, dtype=np.int64) * 3


TINY = Case("tiny", 1, 64)
LARGE = Case("256 KB", 1024, 16)
CASES = (TINY, LARGE)


class Subject(Protocol):
    """A way to ask 4 processes and wait for all of them."""

    name: str

    @property
    def processes(self) -> Sequence[int]:
        """The process ids of the shards, in the order in which they are asked."""
        ...

    def latencies(self, case: Case, count: int) -> list[float]:
        """Seconds that each of `count` fan-outs took, one after the other."""
        ...

    def rate(self, case: Case, seconds: float) -> float:
        """Fan-outs a second, with `case.depth` of them in flight all the time."""
        ...


class Rows:
    """What each shard holds, and how it answers."""

    def __init__(self) -> None:
        self._table = np.arange(4096 * COLUMNS, dtype=np.float32).reshape(4096, COLUMNS)

    def take(self, rows: Array) -> Array:
        """The rows asked for, [n, 64]."""
        taken: Array = self._table.take(rows, 0)
        return taken

    def check(self, case: Case, replies: Sequence[Array]) -> None:
        """Fail unless every shard has answered rightly."""
        assert len(replies) == SHARDS
        for reply in replies:
            np.testing.assert_array_equal(reply, self.take(case.wanted))


def timed(fan_out: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of `count` calls, one after the other."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        fan_out()
        seconds.append(time.perf_counter() - started)
    return seconds


def sliding_rate(
    start: Callable[[], Any], finish: Callable[[Any], object], depth: int, seconds: float
) -> float:
    """Fan-outs a second, with `depth` started and not yet finished, the oldest finished first."""
    begun = time.perf_counter()
    flying = deque(start() for _ in range(depth))
    done = 0
    while time.perf_counter() - begun < seconds:
        finish(flying.popleft())
        flying.append(start())
        done += 1
    elapsed = time.perf_counter() - begun
    for one in flying:
        finish(one)
    return done / elapsed


async def timed_async(fan_out: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """As `timed`."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        await fan_out()
        seconds.append(time.perf_counter() - started)
    return seconds


async def concurrent_rate(
    fan_out: Callable[[], Awaitable[object]], depth: int, seconds: float
) -> float:
    """Fan-outs a second of `depth` tasks, each of which does one after the other."""
    begun = time.perf_counter()
    done = 0

    async def keep_asking() -> None:
        nonlocal done
        while time.perf_counter() - begun < seconds:
            await fan_out()
            done += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(depth):
            group.create_task(keep_asking())
    return done / (time.perf_counter() - begun)


def place(shards: Sequence[int], pinned: bool) -> None:
    """Say where the shards and this process, which asks them, may run: anywhere, or pinned.

    Pinned, this process is on the first core, and the shards are spread from the last core down.
    """
    cores = sorted(CORES)
    for place, process_id in enumerate(shards):
        core = cores[-1 - place * len(cores) // len(shards)]
        _allow(process_id, {core} if pinned else CORES)
    _allow(os.getpid(), {cores[0]} if pinned else CORES)


def _allow(process_id: int, cores: Set[int]) -> None:
    for thread in Path(f"/proc/{process_id}/task").iterdir():
        with suppress(ProcessLookupError):  # A thread that has just ended.
            os.sched_setaffinity(int(thread.name), cores)


@contextmanager
def processes(module: str, arguments: Sequence[str]) -> Iterator[list[int]]:
    """Run `python -m module argument` for each argument, until it has printed a line; give the ids.

    Each has to end when its standard input does.
    """
    running = [
        subprocess.Popen(
            [sys.executable, "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for argument in arguments
    ]
    try:
        for process in running:
            _await_line(process)
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.communicate()


def _await_line(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline(), f"process {process.pid} ended at once"
