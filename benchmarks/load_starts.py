"""One start of each kind of server: the seconds to its first right answer, and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load_probe import SHARDS
from benchmarks.server_process import DidNotStart, ProcessMemory, ServerProcess, free_ports
from benchmarks.serving_subjects import MODEL, START_SECONDS, haproxy_files
from examples.dlrm import EXTRA

#: Requests that a server answers before its memory is read.
REQUESTS = 200
#: A shard actor, as Ray titles its process.
SHARD_TITLE = "ray::ShardActor"


@dataclass(frozen=True)
class Example:
    """The request that comes with a model, and TensorFlow's reply to it."""

    version: Path

    @property
    def request(self) -> bytes:
        return (self.version / EXTRA / "predict_request.json").read_bytes()

    def is_right(self, predictions: Sequence[Sequence[float]]) -> bool:
        """Whether these are TensorFlow's, to 1e-5 relative."""
        reply = json.loads((self.version / EXTRA / "predict_reply.json").read_text())
        wanted = [value for row in reply["predictions"] for value in row]
        got = [value for row in predictions for value in row]
        return len(got) == len(wanted) and all(
            abs(one - other) <= 1e-5 * abs(other) for one, other in zip(got, wanted, strict=True)
        )


@dataclass(frozen=True)
class Started:
    """One start: seconds to the first right answer, and the peaks of all processes after some."""

    seconds: float
    memory: Sequence[ProcessMemory]


def start_server(engine: str, base_path: Path, example: Example, logs: Path) -> Started:
    """`shardserve serve`; its memory is read after REQUESTS requests. Raises DidNotStart."""
    grpc, rest, serve_http, serve_grpc = free_ports(4)
    command = [
        *(sys.executable, "-m", "shardserve", "serve", f"--engine={engine}"),
        *(f"--model_name={MODEL}", f"--model_base_path={base_path}", f"--shards={SHARDS}"),
        *(f"--port={grpc}", f"--rest_api_port={rest}"),
        *(f"--serve_http_port={serve_http}", f"--serve_grpc_port={serve_grpc}"),
    ]
    with ServerProcess(command, logs / engine, haproxy_files(logs)) as server:
        seconds = server.wait_until(lambda: answers(rest, example), START_SECONDS)
        for _ in range(REQUESTS):
            answers(rest, example)
        return Started(seconds, server.memory())


def answers(rest_port: int, example: Example) -> bool:
    """Whether the server answers the example, and rightly. Raises DidNotStart if wrongly."""
    url = f"http://127.0.0.1:{rest_port}/v1/models/{MODEL}:predict"
    try:
        with urllib.request.urlopen(url, example.request, timeout=5.0) as reply:
            predictions = json.load(reply)["predictions"]
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
    if not example.is_right(predictions):
        raise DidNotStart(f"wrong answer: {predictions}")
    return True


def start_tensorflow(example: Example) -> Started:
    """TensorFlow in a process, without a server."""
    return start_probe("tensorflow", str(example.version), right=example.is_right)


def start_probe(*arguments: str, right: Callable[[Any], bool] = lambda _: True) -> Started:
    """A probe that says when it had answered. Raises DidNotStart for a wrong answer."""
    started = time.perf_counter()
    found = probe(*arguments)
    if not right(found.get("predictions")):
        raise DidNotStart(f"wrong answer: {found['predictions']}")
    memory = ProcessMemory(0, " ".join(arguments), found["peak_bytes"])
    return Started(found["answered"] - started, [memory])


def probe(*arguments: str) -> dict[str, Any]:
    """What `benchmarks.load_probe` prints."""
    command = [sys.executable, "-m", "benchmarks.load_probe", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def is_shard(process: ProcessMemory) -> bool:
    """Whether this process is a shard actor."""
    return process.command.startswith(SHARD_TITLE)


def title(command: str) -> str:
    """A short name for a command line: Ray's title, or the program and what it runs."""
    words = [word for word in command.split() if not word.startswith("-")]
    names = [Path(word).name or word for word in words[:2]]
    return " ".join(names)[:60]
