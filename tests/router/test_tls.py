"""Both doors with certificates: who is let in, and what is said of those that are wrong."""

from __future__ import annotations

import asyncio
import http.client
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from shardserve.batching.errors import InvalidArgument
from shardserve.router.grpc_door import GrpcDoor, GrpcOptions
from shardserve.router.handlers import Handlers
from shardserve.router.http_application import MAX_BODY
from shardserve.router.http_door import HttpDoor
from shardserve.router.metrics import Metrics
from shardserve.router.prediction import PredictionHandlers
from shardserve.router.rest import Rest
from shardserve.router.tls import Tls
from shardserve.router.tls_context import server_context
from tests.router.certificates import Authority, Party, client_context

PATH = "/v1/models/half_plus_two"


@pytest.fixture(scope="module")
def servers() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def clients() -> Authority:
    return Authority()


@asynccontextmanager
async def rest_door(handlers: Handlers, tls: Tls) -> AsyncIterator[HttpDoor]:
    door = HttpDoor(Rest(handlers, Metrics(CollectorRegistry())), "127.0.0.1", tls=tls)
    await door.start()
    try:
        yield door
    finally:
        await door.stop(grace=0.0)


@asynccontextmanager
async def grpc_door(handlers: Handlers, options: GrpcOptions) -> AsyncIterator[GrpcDoor]:
    prediction = PredictionHandlers(handlers, Metrics(CollectorRegistry()))
    door = GrpcDoor(prediction, "127.0.0.1", options=options)
    await door.start()
    try:
        yield door
    finally:
        await door.stop(grace=0.0)


async def status_over_https(door: HttpDoor, context: ssl.SSLContext) -> int:
    def ask() -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", door.port, context=context)
        try:
            connection.request("GET", PATH)
            return connection.getresponse().status
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def health_over_grpc(address: str, trusted: bytes, shown: Party | None) -> int:
    credentials = grpc.ssl_channel_credentials(
        trusted, *((shown.key, shown.cert) if shown else (None, None))
    )
    # A Unix socket has no name that a certificate could be for.
    options = [("grpc.ssl_target_name_override", "localhost")]
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status


async def test_rest_is_served_to_clients_that_trust_the_servers_authority(
    handlers: Handlers, servers: Authority, clients: Authority, tmp_path: Path
) -> None:
    async with rest_door(handlers, servers.server()) as door:
        context = client_context(servers.cert, None, tmp_path)
        assert await status_over_https(door, context) == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            await status_over_https(door, client_context(clients.cert, None, tmp_path))


async def test_a_body_that_is_too_long_is_answered_over_tls_before_the_connection_ends(
    handlers: Handlers, servers: Authority, tmp_path: Path
) -> None:
    async with rest_door(handlers, servers.server()) as door:
        context = client_context(servers.cert, None, tmp_path)

        def ask() -> tuple[int, str | None]:
            connection = http.client.HTTPSConnection("127.0.0.1", door.port, context=context)
            connection.request("POST", f"{PATH}:predict", b"x" * (MAX_BODY + 1))
            response = connection.getresponse()
            connection.close()
            return response.status, response.getheader("connection")

        assert await asyncio.to_thread(ask) == (413, "close")


async def test_rest_that_verifies_clients_lets_in_those_of_its_authority_alone(
    handlers: Handlers, servers: Authority, clients: Authority, tmp_path: Path
) -> None:
    async with rest_door(handlers, servers.server(clients=clients)) as door:
        right = client_context(servers.cert, clients.party(), tmp_path)
        assert await status_over_https(door, right) == 200
        for shown in (None, Authority().party(), servers.party()):
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
                await status_over_https(door, client_context(servers.cert, shown, tmp_path))
        assert await status_over_https(door, right) == 200


async def test_clear_text_gets_no_answer_where_there_are_certificates(
    handlers: Handlers, servers: Authority
) -> None:
    async with rest_door(handlers, servers.server()) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert b"200" not in await reader.read()
        writer.close()


async def test_grpc_is_served_to_clients_that_trust_the_servers_authority(
    handlers: Handlers, servers: Authority, clients: Authority
) -> None:
    async with grpc_door(handlers, GrpcOptions(tls=servers.server())) as door:
        address = f"127.0.0.1:{door.port}"
        assert await health_over_grpc(address, servers.cert, None) == 1
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health_over_grpc(address, clients.cert, None)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_grpc_that_verifies_clients_lets_in_those_of_its_authority_alone(
    handlers: Handlers, servers: Authority, clients: Authority
) -> None:
    async with grpc_door(handlers, GrpcOptions(tls=servers.server(clients=clients))) as door:
        address = f"127.0.0.1:{door.port}"
        assert await health_over_grpc(address, servers.cert, clients.party()) == 1
        for shown in (None, Authority().party(), servers.party()):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await health_over_grpc(address, servers.cert, shown)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_unix_socket_asks_for_certificates_like_the_port(
    handlers: Handlers, servers: Authority, clients: Authority, tmp_path: Path
) -> None:
    options = GrpcOptions(str(tmp_path / "s"), servers.server(clients=clients), has_port=False)
    async with grpc_door(handlers, options):
        address = f"unix:{tmp_path / 's'}"
        assert await health_over_grpc(address, servers.cert, clients.party()) == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await health_over_grpc(address, servers.cert, None)


async def test_rest_shows_renewed_certificates_and_asks_for_those_of_the_new_authority(
    handlers: Handlers, servers: Authority, clients: Authority, tmp_path: Path
) -> None:
    new, newcomers = Authority(), Authority()
    async with rest_door(handlers, servers.server(clients=clients)) as door:
        before = client_context(servers.cert, clients.party(), tmp_path)
        assert await status_over_https(door, before) == 200

        door.renew(new.server(clients=newcomers))

        after = client_context(new.cert, newcomers.party(), tmp_path)
        assert await status_over_https(door, after) == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            await status_over_https(door, before)
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            await status_over_https(door, client_context(new.cert, clients.party(), tmp_path))


async def test_a_connection_over_tls_outlives_the_certificates_that_it_began_with(
    handlers: Handlers, servers: Authority, tmp_path: Path
) -> None:
    async with rest_door(handlers, servers.server()) as door:
        context = client_context(servers.cert, None, tmp_path)
        connection = http.client.HTTPSConnection("127.0.0.1", door.port, context=context)

        def ask() -> int:
            connection.request("GET", PATH)
            response = connection.getresponse()
            response.read()
            return response.status

        assert await asyncio.to_thread(ask) == 200
        door.renew(Authority().server())
        assert await asyncio.to_thread(ask) == 200
        connection.close()


async def test_grpc_shows_renewed_certificates_on_port_and_socket_alike(
    handlers: Handlers, servers: Authority, clients: Authority, tmp_path: Path
) -> None:
    new, newcomers = Authority(), Authority()
    options = GrpcOptions(str(tmp_path / "s"), servers.server(clients=clients))
    async with grpc_door(handlers, options) as door:
        addresses = (f"127.0.0.1:{door.port}", f"unix:{tmp_path / 's'}")
        for address in addresses:
            assert await health_over_grpc(address, servers.cert, clients.party()) == 1

        door.renew(new.server(clients=newcomers))

        for address in addresses:
            assert await health_over_grpc(address, new.cert, newcomers.party()) == 1
            for trusted, shown in ((servers.cert, newcomers), (new.cert, clients)):
                with pytest.raises(grpc.aio.AioRpcError):
                    await health_over_grpc(address, trusted, shown.party())


async def test_certificates_that_are_broken_renew_nothing(
    handlers: Handlers, servers: Authority, tmp_path: Path
) -> None:
    good = servers.server()
    broken = replace(good, server_key=servers.party().key)
    async with (
        rest_door(handlers, good) as rest,
        grpc_door(handlers, GrpcOptions(tls=good)) as rpcs,
    ):
        for door in (rest, rpcs):
            with pytest.raises(InvalidArgument, match="not the key of server_cert"):
                door.renew(broken)
        assert await status_over_https(rest, client_context(servers.cert, None, tmp_path)) == 200
        assert await health_over_grpc(f"127.0.0.1:{rpcs.port}", servers.cert, None) == 1


def encrypted(key: bytes) -> bytes:
    return load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda own, other: {"server_key": other.key}, "server_key is not the key of server_cert"),
        (lambda own, other: {"server_key": b"none"}, "server_key is not a private key in PEM"),
        (lambda own, other: {"server_key": own.key[:200]}, "server_key is not a private key"),
        (lambda own, other: {"server_key": encrypted(own.key)}, "server_key is encrypted"),
        (lambda own, other: {"server_cert": b"none"}, "server_cert is not a certificate in PEM"),
        (lambda own, other: {"server_cert": own.cert[:200]}, "server_cert is not a certificate"),
        (lambda own, other: {"server_cert": "ö".encode()}, "server_cert is not a certificate"),
        (lambda own, other: {"custom_ca": b"none"}, "custom_ca is not a certificate in PEM"),
    ],
)
def test_what_is_wrong_with_certificates_is_named_and_nothing_of_the_key_is_shown(
    change, said: str, servers: Authority, clients: Authority
) -> None:
    own, other = servers.party(), servers.party()
    good = Tls(own.key, own.cert, clients.cert, client_verify=True)
    bad = replace(good, **change(own, other))

    server_context(good)
    for make in (server_context, lambda tls: GrpcDoor(None, options=GrpcOptions(tls=tls))):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match=said) as raised:
            make(bad)
        assert "BEGIN" not in raised.value.message
    assert "BEGIN" not in repr(good).replace(repr(good.server_cert), "").replace(
        repr(good.custom_ca), ""
    )


def _open_descriptors() -> Iterator[str]:
    """What this process has open; others of its threads open and close what is theirs."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            yield str(descriptor.readlink())


def test_no_key_is_left_in_a_file_of_memory(servers: Authority) -> None:
    server_context(servers.server())

    assert not [link for link in _open_descriptors() if "memfd:tls" in link]
