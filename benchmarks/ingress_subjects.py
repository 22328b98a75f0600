"""Who is compared at the door: how each server is started, and what to send it."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import orjson

from benchmarks import serving_kserve
from benchmarks.ingress_load import LoadError
from benchmarks.ingress_models import WIDTH, Arithmetic
from benchmarks.server_process import free_ports
from benchmarks.serving_requests import predict_request
from benchmarks.serving_subjects import PREDICT, PYTRITON_PYTHON, OurPorts, haproxy_files

PEERS = "benchmarks.ingress_peers"

HTTP_ECHO, GRPC_ECHO, SERVE_ECHO = "uvicorn echo", "grpc.aio echo", "Ray Serve echo"
LOCAL, RAY, SERVE_DOOR = "ours, local", "ours, Ray", "ours, Ray, Serve's ingress"
FASTAPI, TRITON = "FastAPI", "Triton"


@dataclass(frozen=True)
class Rest:
    """Where to POST what, and how the numbers come back."""

    url: str
    body: bytes
    numbers: Callable[[Any], Any]


@dataclass(frozen=True)
class Grpc:
    """Which unary method to call with what, and how the numbers come back."""

    port: int
    method: str
    message: bytes
    numbers: Callable[[bytes], Any]


@dataclass(frozen=True)
class Server:
    """One server with one model: how it is started, and what to send it over either wire."""

    command: Sequence[str]
    rest: Rest | None = None
    grpc: Grpc | None = None
    env: Mapping[str, str] = field(default_factory=dict)


#: Makes a subject's server for a model that lies below a base path.
Subject = Callable[[Arithmetic, Path, Path], Server]


def answers(server: Server, model: Arithmetic) -> bool:
    """Whether both wires are there. Raises LoadError for an answer that is not right."""
    try:
        if server.rest:
            one = server.rest
            request = urllib.request.Request(
                one.url, one.body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=5.0) as reply:
                _check(one.numbers(orjson.loads(reply.read())), model, one.url)
        if server.grpc:
            call = server.grpc
            with grpc.insecure_channel(f"127.0.0.1:{call.port}") as channel:
                answer = channel.unary_unary(call.method)(call.message, timeout=5.0)
            _check(call.numbers(answer), model, call.method)
    except (OSError, grpc.RpcError):
        return False
    return True


def _check(numbers: Any, model: Arithmetic, where: str) -> None:
    try:
        right = model.is_right(numbers)
    except ValueError:
        right = False
    if not right:
        raise LoadError(f"{where}: a wrong answer")


def _ours(engine: str) -> Subject:
    def server(model: Arithmetic, base_path: Path, directory: Path) -> Server:
        ports = OurPorts.free()
        return Server(
            ports.command(model.name, base_path, [engine]),
            Rest(_predict_url(ports.rest, model), model.body, _predictions),
            _predict(ports.grpc, model),
            haproxy_files(directory),
        )

    return server


def _serve_door(model: Arithmetic, base_path: Path, directory: Path) -> Server:
    ports = OurPorts.free()
    return Server(
        ports.command(model.name, base_path, ["--engine=ray"]),
        Rest(_predict_url(ports.serve_http, model), model.body, _predictions),
        _predict(ports.serve_grpc, model),
        haproxy_files(directory),
    )


def _http_echo(model: Arithmetic, base_path: Path, directory: Path) -> Server:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", f"{PEERS}.uvicorn_echo", str(port)]
    return Server(command, Rest(f"http://127.0.0.1:{port}/", model.body, _echoed(model)))


def _grpc_echo(model: Arithmetic, base_path: Path, directory: Path) -> Server:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", f"{PEERS}.grpc_echo", str(port)]
    message = predict_request(model.name)({"x": model.x.astype("f")})
    right = model.x / 2 + 2
    call = Grpc(port, PREDICT, message, lambda reply: right if reply == message else ())
    return Server(command, grpc=call)


def _serve_echo(model: Arithmetic, base_path: Path, directory: Path) -> Server:
    http, rpc = free_ports(2)
    predict = _predict(rpc, model)
    call = Grpc(rpc, PREDICT, predict.message, lambda reply: predict.numbers(reply) / 2 + 2)
    return Server(
        [sys.executable, "-m", f"{PEERS}.serve_echo", str(http), str(rpc)],
        Rest(f"http://127.0.0.1:{http}/", model.body, _echoed(model)),
        call,
        haproxy_files(directory),
    )


def _fastapi(model: Arithmetic, base_path: Path, directory: Path) -> Server:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", f"{PEERS}.fastapi_app", str(port)]
    return Server(command, Rest(f"http://127.0.0.1:{port}/", model.body, _predictions))


def _triton(model: Arithmetic, base_path: Path, directory: Path) -> Server:
    http, rpc = free_ports(2)
    peer = Path(__file__).parent / "ingress_peers" / "triton.py"
    x = {"x": model.x.astype("f").reshape(1, -1)}
    return Server(
        [str(PYTRITON_PYTHON), str(peer), str(http), str(rpc), str(WIDTH)],
        Rest(
            f"http://127.0.0.1:{http}/v2/models/{model.name}/infer",
            serving_kserve.json_request(x),
            lambda reply: reply["outputs"][0]["data"],
        ),
        Grpc(
            rpc,
            serving_kserve.INFER_METHOD,
            serving_kserve.grpc_request(model.name)(x),
            serving_kserve.grpc_predictions,
        ),
    )


def _predict_url(port: int, model: Arithmetic) -> str:
    return f"http://127.0.0.1:{port}/v1/models/{model.name}:predict"


def _predictions(reply: Any) -> Any:
    return reply["predictions"]


def _echoed(model: Arithmetic) -> Callable[[Any], Any]:
    sent = orjson.loads(model.body)
    return lambda reply: model.x / 2 + 2 if reply == sent else ()


def _predict(port: int, model: Arithmetic) -> Grpc:
    return Grpc(port, PREDICT, predict_request(model.name)({"x": model.x.astype("f")}), _output_y)


def _output_y(reply: bytes) -> Any:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    return tf.make_ndarray(predict_pb2.PredictResponse.FromString(reply).outputs["y"])


SUBJECTS: Mapping[str, Subject] = {
    HTTP_ECHO: _http_echo,
    GRPC_ECHO: _grpc_echo,
    LOCAL: _ours("--engine=local"),
    FASTAPI: _fastapi,
    RAY: _ours("--engine=ray"),
    SERVE_DOOR: _serve_door,
    SERVE_ECHO: _serve_echo,
    TRITON: _triton,
}
