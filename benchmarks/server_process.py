"""A server under test, as a black box: started, awaited, weighed, and ended with all it started.

What a server starts may leave its process group and session (Ray's do). So each runs below a
supervisor, a process that adopts what is orphaned below it: every descendant of the supervisor is
the server's, and nothing else is ever signalled. The supervisor ends with this process, and ends
the server then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import psutil

from shardserve.cluster.processes import adopt_orphans, end_descendants

POLL_SECONDS = 0.02
INTERRUPT_GRACE = 30.0
TERMINATE_GRACE = 5.0
#: Below those that Linux gives to outgoing connections.
SERVER_PORTS = range(20_000, 32_000)
_PR_SET_PDEATHSIG = 1


class DidNotStart(RuntimeError):
    """The server ended, or was not ready in time. The text has the end of its output."""


@dataclass(frozen=True)
class ProcessMemory:
    """One process: what its command line says it is, and the most it ever had resident."""

    pid: int
    command: str
    peak_bytes: int


class ServerProcess:
    """A running server. A context manager: leaving it ends the server and all that it started."""

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.server_process", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                env=os.environ | (env or {}),
                start_new_session=True,
            )
        assert self._supervisor.stdout is not None
        started = self._supervisor.stdout.readline()
        if not started:
            self.end()
            raise DidNotStart(f"{command[0]}: {self.tail()}")
        self.started = float(started)

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> float:
        """Poll `ready`; the seconds from the start until it was true. Raises DidNotStart."""
        while not ready():
            waited = time.perf_counter() - self.started
            if self._supervisor.poll() is not None:
                raise DidNotStart(f"ended with {self._supervisor.returncode}: {self.tail()}")
            if waited > timeout:
                raise DidNotStart(f"not ready after {timeout:.0f} s: {self.tail()}")
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - self.started

    def said(self, line: str) -> bool:
        """Whether the server has printed this line."""
        return line in self._log.read_text(errors="replace").splitlines()

    def tail(self, characters: int = 400) -> str:
        """The end of the output, on one line."""
        return " | ".join(self._log.read_text(errors="replace")[-characters:].split("\n")).strip()

    def processes(self) -> list[psutil.Process]:
        """Every living process of this server, at any depth."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._supervisor.pid).children(recursive=True)
        return []

    def memory(self) -> list[ProcessMemory]:
        """The peak of every living process."""
        found = []
        for process in self.processes():
            with contextlib.suppress(OSError, psutil.Error):
                command = " ".join(process.cmdline()).strip() or process.name()
                found.append(ProcessMemory(process.pid, command, peak_rss(process.pid)))
        return found

    def cpu_seconds(self) -> float:
        """Processor time of all living processes so far."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def end(self) -> None:
        """Ctrl-C, as a user would; the supervisor ends what is left then, and in the end itself."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            self._supervisor.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._supervisor.wait(INTERRUPT_GRACE)
                break
        assert self._supervisor.stdout is not None
        self._supervisor.stdout.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


def peak_rss(pid: int | str = "self") -> int:
    """The most bytes that were ever resident in a process (VmHWM). Raises OSError if it ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now, and that no outgoing connection will take."""
    found: list[int] = []
    for port in random.sample(SERVER_PORTS, len(SERVER_PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"fewer than {count} of the ports {SERVER_PORTS} are free")


@contextlib.contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """Make SIGTERM unwind the stack as Ctrl-C does, so that servers are ended then as well."""

    def unwind(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def supervise(command: Sequence[str]) -> int:
    """Run a command, pass SIGINT on to it, and leave no process of its behind."""
    adopt_orphans()
    _end_with_parent()
    with unwinding_on_sigterm():
        try:
            # What a shell runs in the background ignores Ctrl-C, and so would the child.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            started = time.perf_counter()
            child = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
            signal.signal(signal.SIGINT, lambda *_: child.send_signal(signal.SIGINT))
            print(started, flush=True)
            return child.wait()
        finally:
            end_descendants(TERMINATE_GRACE)


def _end_with_parent() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
