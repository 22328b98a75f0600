"""The doors' options, one by one, over real sockets."""

from __future__ import annotations

import socket
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from shardserve.batching.errors import Unavailable
from shardserve.router.grpc_door import GrpcDoor, GrpcOptions
from shardserve.router.handlers import Handlers
from shardserve.router.listening import claim_socket
from shardserve.router.metrics import Metrics
from shardserve.router.prediction import PredictionHandlers


@pytest.fixture
def prediction(handlers: Handlers) -> PredictionHandlers:
    return PredictionHandlers(handlers, Metrics(CollectorRegistry()))


async def is_healthy(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def test_grpc_is_served_on_a_unix_socket_besides_the_port(
    prediction: PredictionHandlers, tmp_path: Path
) -> None:
    path = tmp_path / "models.sock"
    door = GrpcDoor(prediction, "127.0.0.1", options=GrpcOptions(str(path)))
    await door.start()

    assert await is_healthy(f"unix:{path}")
    assert await is_healthy(f"127.0.0.1:{door.port}")

    await door.stop(grace=0.0)
    assert not path.exists()


async def test_a_socket_alone_will_do_and_one_that_an_ended_server_left_is_replaced(
    prediction: PredictionHandlers, tmp_path: Path
) -> None:
    path = tmp_path / "models.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    door = GrpcDoor(prediction, options=GrpcOptions(str(path), has_port=False))
    await door.start()

    assert await is_healthy(f"unix:{path}")
    assert door.port == 0

    await door.stop(grace=0.0)


def test_a_socket_of_somebody_else_or_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    taken, file = tmp_path / "taken", tmp_path / "file"
    file.write_text("mine")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(taken))
        other.listen()
        with pytest.raises(Unavailable, match="taken: somebody else does"):
            claim_socket(str(taken))
    with pytest.raises(Unavailable, match="is no socket"):
        claim_socket(str(file))
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "named"),
    [(socket.SOCK_STREAM, "somebody else does"), (socket.SOCK_DGRAM, "wrong type")],
    ids=["busy", "of datagrams"],
)
def test_a_socket_is_replaced_only_where_nobody_can_be_listening(
    tmp_path: Path, kind: socket.SocketKind, named: str
) -> None:
    path = str(tmp_path / "taken")
    with socket.socket(socket.AF_UNIX, kind) as other, socket.socket(socket.AF_UNIX, kind) as first:
        other.bind(path)
        if kind is socket.SOCK_STREAM:
            other.listen(0)
            first.connect(path)
        with pytest.raises(Unavailable, match=f"{path}: .*{named}"):
            claim_socket(path)
    assert Path(path).is_socket()


async def test_a_socket_whose_directory_is_not_there_is_named(
    prediction: PredictionHandlers, tmp_path: Path
) -> None:
    path = tmp_path / "absent" / "s"
    door = GrpcDoor(prediction, options=GrpcOptions(str(path), has_port=False))
    with pytest.raises(Unavailable, match=str(path)):
        await door.start()


async def test_grpcs_own_arguments_reach_it(prediction: PredictionHandlers) -> None:
    arguments = (("grpc.max_receive_message_length", 8),)
    door = GrpcDoor(prediction, "127.0.0.1", options=GrpcOptions(channel_arguments=arguments))
    await door.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Check(health_pb2.HealthCheckRequest(service="a name of many bytes"))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await door.stop(grace=0.0)


async def test_rpcs_beyond_the_bound_are_refused(prediction: PredictionHandlers) -> None:
    door = GrpcDoor(prediction, "127.0.0.1", options=GrpcOptions(max_rpcs=1))
    await door.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Check(health_pb2.HealthCheckRequest())
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        watch.cancel()
    await door.stop(grace=0.0)
