"""Who is compared: how each server is started, and where and in which form it takes requests."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from benchmarks import serving_kserve
from benchmarks.server_process import ServerProcess, free_ports
from benchmarks.serving_load import Target, Workload
from benchmarks.serving_requests import (
    Queries,
    grpc_predictions,
    predict_request,
    rest_predictions,
    rest_rows,
)

START_SECONDS = 120.0
MODEL = "dlrm"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
PEERS = Path(__file__).parent / "serving_peers"
#: An environment of its own: it wants other versions of what we use.
PYTRITON_PYTHON = Path(".cache/bench/pytriton/bin/python")
PYTRITON_INSTALL = (
    "/usr/bin/python3 -m venv .cache/bench/pytriton && .cache/bench/pytriton/bin/pip install "
    "'nvidia-pytriton==0.7.*' tensorflow==2.21.0"
)

#: What is sent: the workload for single examples over REST, and that for batches over gRPC.
Endpoint = tuple[Target, Workload]


@dataclass(frozen=True)
class Drawn:
    """The queries of both cases."""

    single: Queries
    batch: Queries


@dataclass(frozen=True)
class Setting:
    """One way to batch. `apply` tells a running server to; `rest` is where to send afterwards."""

    name: str
    rest: Endpoint
    apply: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Subject:
    """A server to compare. The best of `settings` for single examples is used throughout."""

    name: str
    command: Sequence[str]
    ready: Callable[[ServerProcess], bool]
    settings: Sequence[Setting]
    grpc: Endpoint
    env: Mapping[str, str] = field(default_factory=dict)

    def start(self, directory: Path) -> ServerProcess:
        """Start it; it keeps its log and its sockets in `directory`. Not ready yet."""
        directory.mkdir(parents=True)
        return ServerProcess(
            self.command, directory / "log", {**self.env, **haproxy_files(directory)}
        )


@dataclass(frozen=True)
class OurPorts:
    """The ports of one `shardserve serve`: the direct doors', and those behind Ray Serve."""

    grpc: int
    rest: int
    serve_http: int
    serve_grpc: int

    @classmethod
    def free(cls) -> OurPorts:
        """Four that nobody listens on."""
        return cls(*free_ports(4))

    def command(self, model: str, base_path: Path, flags: Sequence[str]) -> list[str]:
        """What starts the server."""
        return [
            *(sys.executable, "-m", "shardserve", "serve"),
            *(f"--model_name={model}", f"--model_base_path={base_path}"),
            *(f"--port={self.grpc}", f"--rest_api_port={self.rest}"),
            *(f"--serve_http_port={self.serve_http}", f"--serve_grpc_port={self.serve_grpc}"),
            *flags,
        ]


def ours(name: str, base_path: Path, drawn: Drawn, flags: Sequence[str]) -> Subject:
    """`shardserve serve` with the direct door."""
    ports = OurPorts.free()
    endpoint = (Target("rest", ports.rest, f"/v1/models/{MODEL}:predict"), _rest(drawn))
    return Subject(
        name=name,
        command=ports.command(MODEL, base_path, flags),
        ready=lambda _: is_available(ports.rest),
        settings=[Setting("", endpoint)],
        grpc=(Target("grpc", ports.grpc, PREDICT), _grpc(drawn)),
    )


def is_available(rest_port: int) -> bool:
    """Whether TensorFlow Serving's status says that a version is AVAILABLE."""
    url = f"http://127.0.0.1:{rest_port}/v1/models/{MODEL}"
    try:
        with urllib.request.urlopen(url, timeout=1.0) as reply:
            return b'"AVAILABLE"' in reply.read()
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def ray_serve(base_path: Path, drawn: Drawn, ways: Sequence[tuple[int, float]]) -> Subject:
    """Ray Serve with HAProxy and `@serve.batch`; `ways` are (max_batch_size, wait in seconds)."""
    http, grpc = free_ports(2)
    endpoint = (Target("rest", http, "/"), _rest(drawn))

    def way(max_batch_size: int, wait: float) -> Setting:
        parameters = {"max_batch_size": max_batch_size, "batch_wait_timeout_s": wait}
        name = f"max_batch_size {max_batch_size}, batch_wait_timeout_s {wait}"
        return Setting(name, endpoint, lambda: _post(f"http://127.0.0.1:{http}/tune", parameters))

    return Subject(
        name="Ray Serve",
        command=[
            *(sys.executable, "-m", "benchmarks.serving_peers.ray_serve"),
            *(f"--model={base_path / '1'}", f"--http_port={http}", f"--grpc_port={grpc}"),
        ],
        ready=lambda server: server.said("ready"),
        settings=[way(size, wait) for size, wait in ways],
        grpc=(Target("grpc", grpc, PREDICT), _grpc(drawn)),
    )


def triton(base_path: Path, drawn: Drawn, delays_us: Sequence[int]) -> Subject:
    """Triton's Python backend; `delays_us` are the dynamic batcher's queue delays to try."""
    http, grpc = free_ports(2)
    single = drawn.single.encoded(serving_kserve.json_request, serving_kserve.json_predictions)
    batch_model = f"dlrm_{delays_us[0]}"
    batch = drawn.batch.encoded(
        serving_kserve.grpc_request(batch_model), serving_kserve.grpc_predictions
    )
    return Subject(
        name="Triton",
        command=[
            *(str(PYTRITON_PYTHON), str(PEERS / "triton.py"), f"--model={base_path / '1'}"),
            *(f"--http_port={http}", f"--grpc_port={grpc}"),
            f"--delays_us={','.join(map(str, delays_us))}",
        ],
        ready=lambda server: server.said("ready"),
        settings=[
            Setting(
                f"max_queue_delay_microseconds {delay}",
                (Target("rest", http, f"/v2/models/dlrm_{delay}/infer"), single),
            )
            for delay in delays_us
        ],
        grpc=(Target("grpc", grpc, serving_kserve.INFER_METHOD), batch),
    )


def triton_missing() -> str | None:
    """Why Triton cannot be started, None if it can."""
    if PYTRITON_PYTHON.exists():
        return None
    return f"nvidia-pytriton is not installed: {PYTRITON_INSTALL}"


def _rest(drawn: Drawn) -> Workload:
    return drawn.single.encoded(rest_rows, rest_predictions)


def _grpc(drawn: Drawn) -> Workload:
    return drawn.batch.encoded(predict_request(MODEL), grpc_predictions)


def _post(url: str, body: Mapping[str, object]) -> None:
    with urllib.request.urlopen(url, orjson.dumps(body), timeout=30.0):
        pass


def haproxy_files(directory: Path) -> dict[str, str]:
    """Ray Serve keeps HAProxy's files in one place for all that run on a machine, unless told."""
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "haproxy.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
    }
