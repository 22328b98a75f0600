"""Servers as users start them, on either engine, of models in every state."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from shardserve.cluster.ports import free_ports
from tests.contract.endpoint import Endpoint, Failure
from tests.contract.models import export_examples, export_half_plus_two, export_types
from tests.contract.requests import reload, spec, status

ENGINES = ("local", "ray")

_READY = "until Ctrl-C"
_SECONDS = 120.0
_AVAILABLE, _LOADING, _END = 30, 20, 50

#: What GetModelStatus says of the version whose files are damaged.
DAMAGED = Failure(15, "125/variables/variables.index")


@contextmanager
def engine_server(engine: str, root: Path) -> Iterator[Endpoint]:
    """A server on an engine, once the models are as `Endpoint` says."""
    base = root / engine
    _export(base)
    with _process(engine, base) as endpoint, grpc.insecure_channel(endpoint.grpc) as channel:
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        models.HandleReloadConfigRequest(reload(endpoint.config), timeout=_SECONDS)
        _wait_for_states(models)
        try:
            yield endpoint
        finally:
            _end_loading(_pipe(base))


def _export(base: Path) -> None:
    for version in (122, 123, 124, 125):
        export_half_plus_two(base / "half_plus_two" / str(version))
    export_examples(base / "examples" / "1")
    export_types(base / "types" / "1")
    # Whoever reads it, to load the version, waits until somebody writes.
    os.mkfifo(_pipe(base))
    damaged = base / "half_plus_two" / "125" / "variables" / "variables.index"
    damaged.write_bytes(damaged.read_bytes()[:-10])


def _pipe(base: Path) -> Path:
    return base / "half_plus_two" / "124" / "batching_params.pbtxt"


def _end_loading(pipe: Path) -> None:
    """Let a reader of the pipe have nothing, if there is one."""
    with contextlib.suppress(OSError):
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


def _config(base: Path, versions: tuple[int, ...]) -> model_server_config_pb2.ModelServerConfig:
    config = model_server_config_pb2.ModelServerConfig()
    for name in ("half_plus_two", "examples", "types"):
        config.model_config_list.config.add(
            name=name, base_path=str(base / name), model_platform="tensorflow"
        )
    half = config.model_config_list.config[0]
    half.model_version_policy.specific.versions.extend(versions)
    half.version_labels.update({"stable": 123, "old": 122})
    return config


@contextmanager
def _process(engine: str, base: Path) -> Iterator[Endpoint]:
    rest, rpc, *others = free_ports(4)
    file = base / "models.config"
    file.write_text(str(_config(base, (122, 123))))
    command = [
        *(sys.executable, "-m", "shardserve", "serve", f"--engine={engine}"),
        *(f"--model_config_file={file}", "--allow_version_labels_for_unavailable_models"),
        *(f"--rest_api_port={rest}", f"--port={rpc}", "--rest_api_enable_cors_support"),
        *("--rest_api_compress_from=65536", "--enable_batching"),
        "--enable_per_model_batching_parameters",
        *(f"--serve_http_port={others[0]}", f"--serve_grpc_port={others[1]}"),
    ]
    # Another Ray of these tests must not be taken for this one's.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    log = base / "log"
    with (
        log.open("w") as writing,
        subprocess.Popen(
            command, env=environment, stderr=writing, start_new_session=True
        ) as process,
    ):
        try:
            _wait_until_ready(process, log)
            yield Endpoint(rest, rpc, DAMAGED, _config(base, (123, 124, 125)))
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(_SECONDS)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    while _READY not in log.read_text():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            raise AssertionError(log.read_text())


def _wait_for_states(models: model_service_pb2_grpc.ModelServiceStub) -> None:
    wanted = {122: _END, 123: _AVAILABLE, 124: _LOADING, 125: _END}
    states: dict[int, int] = {}
    while states != wanted:
        reply = models.GetModelStatus(status(spec("half_plus_two")), timeout=_SECONDS)
        states = {row.version: row.state for row in reply.model_version_status}
