"""The `shardserve` command as a user starts it: a process group of its own, on free ports."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shardserve.cluster.ports import free_ports

_READY = "until Ctrl-C"
_END_SECONDS = 60.0
_AT_ONCE = "--drain_seconds=0"
_MARK = "SHARDSERVE_TEST_MARK"


@dataclass
class Server:
    """A command that was started, the ports that it was given, and what it has said so far."""

    process: subprocess.Popen[str]
    mark: str
    grpc: int
    rest: int
    ingress_http: int
    ingress_grpc: int
    said: str = ""

    def is_ready(self) -> bool:
        """Read until it says that it serves, or ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if _READY in line:
                return True
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started alone, as a scheduler does."""
        self.process.send_signal(number)

    def end(self, number: signal.Signals) -> int:
        """Send a signal to its whole process group, as a terminal does; the exit status."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        _, rest = self.process.communicate(timeout=_END_SECONDS)
        self.said += rest
        return self.process.returncode

    def descendants(self) -> list[str]:
        """The command lines of all living processes that it started, however indirectly."""
        return [_command(entry) for entry in Path("/proc").iterdir() if self._started(entry)]

    def _started(self, entry: Path) -> bool:
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            return False
        return f"{_MARK}={self.mark}".encode() in environment and _command(entry) != ""


def _command(entry: Path) -> str:
    with suppress(OSError):
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


@contextmanager
def server(base_path: Path, *flags: str) -> Iterator[Server]:
    """Start `shardserve serve` on a model called "m"; end it with the block, if it still runs.

    Unless a layout says so, its tables are cut from 16 KB on. It drains only if it is told to.
    """
    cut = [] if any(flag.startswith("--layout=") for flag in flags) else ["--cut_threshold=16KB"]
    ports = free_ports(4)
    names = ("port", "rest_api_port", "serve_http_port", "serve_grpc_port")
    chosen = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    model = ("--model_name=m", f"--model_base_path={base_path}")
    words = ("-m", "shardserve", "serve", *model, *chosen, *cut, _AT_ONCE, *flags)
    with _started(words, ports) as started:
        yield started


@contextmanager
def model_server(*flags: str) -> Iterator[Server]:
    """Start `tensorflow_model_server`, without Ray; drain and end it as `server` does."""
    grpc, rest = free_ports(2)
    program = "from shardserve.cluster.cli import tensorflow_model_server as main; main()"
    words = ("-c", program, f"--port={grpc}", f"--rest_api_port={rest}", _AT_ONCE, *flags)
    with _started(words, [grpc, rest, 0, 0]) as started:
        yield started


@contextmanager
def _started(words: Sequence[str], ports: Sequence[int]) -> Iterator[Server]:
    mark = secrets.token_hex(8)
    # The tests' own Ray must not be taken for this one's.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, *words],
        env={**environment, _MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started = Server(process, mark, *ports)
    try:
        yield started
    finally:
        if process.poll() is None:
            started.end(signal.SIGINT)
