"""The REST door over real sockets: HTTP as clients speak it, well and badly."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from shardserve.batching.errors import Unavailable
from shardserve.router import http_door
from shardserve.router.handlers import Handlers
from shardserve.router.http_door import HttpDoor
from shardserve.router.listening import listen
from shardserve.router.metrics import Metrics
from shardserve.router.rest import Response, Rest

MAX_BODY = 1 << 20

PREDICT = "/v1/models/half_plus_two:predict"
BODY = b'{"instances": [1, 2, 5]}'


class Echo:
    """A REST API that answers what it was asked, or waits until it may."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cancelled = asyncio.Event()
        self.waiting = asyncio.Event()
        self.large = asyncio.Event()
        self.release = asyncio.Event()

    async def handle(self, method: str, path: str, headers: Any, body: bytes) -> Response:
        self.asked.append(path)
        if path == "/wait":
            await self._wait()
        text = {"method": method, "path": path, "x": headers.get("x-given"), "size": len(body)}
        padding = b""
        if path == "/large":
            self.large.set()
            padding = b" " * (4 << 20)
        return Response(200, (("x-path", path),), json.dumps(text).encode() + padding)

    def refusal(self, method: str, path: str, headers: Any) -> Response | None:
        return None

    def refused(self, status: int, message: str) -> Response:
        return Response(status, (), message.encode())

    async def _wait(self) -> None:
        self.waiting.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@contextlib.asynccontextmanager
async def opened(rest: Any, **options: Any) -> AsyncIterator[HttpDoor]:
    door = HttpDoor(rest, "127.0.0.1", max_body=MAX_BODY, **options)
    await door.start()
    try:
        yield door
    finally:
        await door.stop(grace=0.0)


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def door(echo: Echo) -> AsyncIterator[HttpDoor]:
    async with opened(echo) as door:
        yield door


async def talk(port: int, *pieces: bytes) -> bytes:
    """All that comes back until the server closes, for `pieces` sent one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    received = await reader.read()
    writer.close()
    return received


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: x", *headers, "", ""]).encode()


def bodies(received: bytes) -> list[Any]:
    """The JSON of each response, in order."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found.append(json.loads(rest[:length]))
        received = rest[length:]
    return found


def connection(door: HttpDoor) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", door.port, timeout=60)


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


# End to end


async def test_an_http_client_gets_its_predictions_over_one_connection(handlers: Handlers) -> None:
    async with opened(Rest(handlers, Metrics(CollectorRegistry()))) as door:

        def ask() -> Iterator[tuple[int, Any]]:
            client = connection(door)
            for method, path, body in [
                ("POST", PREDICT, BODY),
                ("GET", "/v1/models/half_plus_two", None),
                ("POST", PREDICT, b"{"),
                ("POST", PREDICT, b"\xff\xfe"),
                ("POST", PREDICT, BODY),
            ]:
                client.request(method, path, body)
                response = client.getresponse()
                assert response.getheader("content-type") == "application/json"
                yield response.status, json.loads(response.read())
            client.close()

        replies = await in_thread(lambda: list(ask()))
    assert [status for status, _ in replies] == [200, 200, 400, 400, 200]
    assert replies[0][1] == replies[4][1] == {"predictions": [2.5, 3.0, 4.5]}
    assert all("JSON Parse error: " in reply["error"] for _, reply in replies[2:4])


async def test_a_body_far_too_long_costs_only_its_own_connection(handlers: Handlers) -> None:
    async with opened(Rest(handlers, Metrics(CollectorRegistry()))) as door:

        def send(body: Any) -> tuple[int, str]:
            client = connection(door)
            client.request("POST", PREDICT, body)
            response = client.getresponse()
            reply = json.loads(response.read())
            client.close()
            return response.status, str(reply)

        announced = await in_thread(lambda: send(b"x" * (200 << 20)))
        chunked = await in_thread(lambda: send(iter([b"x" * (1 << 20)] * 8)))
        fits = await in_thread(lambda: send(BODY))
    for status, reply in (announced, chunked):
        assert status == 413
        assert f"longer than {MAX_BODY} bytes" in reply
    assert fits[0] == 200


# The protocol


async def test_path_query_and_headers_arrive_as_sent(door: HttpDoor) -> None:
    sent = get("/v1/a%2Fb%20c?q=%41&z", "X-Given: yes", "connection: close")
    [reply] = bodies(await talk(door.port, sent))
    assert reply == {"method": "GET", "path": "/v1/a%2Fb%20c?q=%41&z", "x": "yes", "size": 0}


async def test_the_host_of_an_absolute_url_is_left_out(door: HttpDoor) -> None:
    received = await talk(door.port, get("http://host:1/a%2Fb?c", "connection: close"))
    assert bodies(received)[0]["path"] == "/a%2Fb?c"


@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_requests_are_answered_in_order_however_they_are_cut(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=6))
    sent = b"".join(
        f"POST /{place} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n".encode()
        + b"x" * size
        for place, size in enumerate(sizes)
    ) + get("/last", "connection: close")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=5)))
    pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]

    async def exchange() -> list[Any]:
        async with opened(Echo()) as door:
            return bodies(await talk(door.port, *pieces))

    replies = asyncio.run(exchange())
    assert [reply["path"] for reply in replies] == [*(f"/{n}" for n in range(len(sizes))), "/last"]
    assert [reply["size"] for reply in replies] == [*sizes, 0]


async def test_chunks_make_one_body(door: HttpDoor) -> None:
    head = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    received = await talk(door.port, head, b"3\r\nabc\r\n", b"4\r\ndefg\r\n", b"0\r\n\r\n")
    assert bodies(received)[0]["size"] == 7


async def test_who_waits_to_be_told_is_told_to_go_on(door: HttpDoor) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    head = (
        b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\n"
    )
    writer.write(head)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"ab")
    assert bodies(await reader.read())[0]["size"] == 2
    writer.close()


async def test_who_waits_to_be_told_with_too_much_is_refused_at_once(door: HttpDoor) -> None:
    head = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n"
    received = await talk(door.port, head)
    assert received.startswith(b"HTTP/1.1 413 ")


class Refusing(Echo):
    """Refuses by their heads requests for /busy."""

    def refusal(self, method: str, path: str, headers: Any) -> Response | None:
        if path != "/busy":
            return None
        given = headers.get("x-request-id") or ""
        found = (("content-type", "application/json"), ("x-request-id", given))
        return Response(503, found, b'{"error": "busy"}')


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_what_is_refused_by_its_head_leaves_the_others_in_order(data: st.DataObject) -> None:
    busy = data.draw(st.lists(st.booleans(), min_size=1, max_size=6))
    chunked = data.draw(st.lists(st.booleans(), min_size=len(busy), max_size=len(busy)))
    sent = b"".join(map(_post, busy, chunked)) + get("/last", "connection: close")
    places = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1), max_size=8)))
    pieces = [sent[a:b] for a, b in itertools.pairwise([0, *places, len(sent)])]

    async def answered() -> list[Any]:
        async with opened(Refusing()) as door:
            return bodies(await talk(door.port, *pieces))

    *replies, last = asyncio.run(answered())
    assert last["path"] == "/last"
    # What comes while another is being answered waits behind it, and is refused by nobody here.
    assert replies[0] == {"error": "busy"} or not busy[0]
    assert [reply.get("path", "/busy") for reply in replies] == [
        "/busy" if one else "/idle" for one in busy
    ]


def _post(busy: bool, chunked: bool) -> bytes:
    head = f"POST /{'busy' if busy else 'idle'} HTTP/1.1\r\nhost: x\r\n"
    if chunked:
        return f"{head}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".encode()
    return f"{head}content-length: 3\r\n\r\nabc".encode()


async def test_a_refused_client_may_ask_again_and_keeps_its_request_id() -> None:
    async with opened(Refusing()) as door:
        client = connection(door)

        def ask(path: str) -> tuple[int, str | None, Any]:
            client.request("POST", path, body=b"x" * 4096, headers={"x-request-id": "mine"})
            reply = client.getresponse()
            return reply.status, reply.headers["x-request-id"], json.loads(reply.read())

        assert await in_thread(lambda: ask("/busy")) == (503, "mine", {"error": "busy"})
        assert (await in_thread(lambda: ask("/idle")))[2]["path"] == "/idle"


async def test_a_refused_client_that_wants_no_more_is_let_go() -> None:
    async with opened(Refusing()) as door:
        asked = b"POST /busy HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx"
        received = await talk(door.port, asked)
    assert received.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


async def test_http_1_0_closes(door: HttpDoor) -> None:
    assert b"connection: close" in await talk(door.port, b"GET /a HTTP/1.0\r\n\r\n")


async def test_a_head_has_no_body(door: HttpDoor) -> None:
    received = await talk(door.port, b"HEAD / HTTP/1.1\r\nconnection: close\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-length: " in head
    assert body == b""


async def test_an_upgrade_is_not_made(door: HttpDoor, echo: Echo) -> None:
    sent = get("/ws", "connection: upgrade", "upgrade: websocket")
    received = await talk(door.port, sent + b"\x81\x00 no http")
    assert received.startswith(b"HTTP/1.1 200 ")
    assert echo.asked == ["/ws"]


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused(door: HttpDoor, echo: Echo, sent: bytes) -> None:
    received = await talk(door.port, sent)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert echo.asked == []


async def test_endless_headers_are_cut_off(door: HttpDoor) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(b"GET / HTTP/1.1\r\na: ")
    for _ in range(http_door.MAX_HEAD // 8192 + 1):
        writer.write(b"b" * 8192)
        await writer.drain()
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_a_client_that_goes_away_cancels_its_request(door: HttpDoor, echo: Echo) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(get("/wait"))
    await echo.waiting.wait()
    writer.close()
    await asyncio.wait_for(echo.cancelled.wait(), 60)


async def test_a_slow_reader_gets_all_of_a_large_response(door: HttpDoor) -> None:
    received = await talk(door.port, get("/large") * 3 + get("/end", "connection: close"))
    assert [reply["path"] for reply in bodies(received)] == ["/large"] * 3 + ["/end"]


async def test_a_client_that_takes_nothing_is_asked_for_no_more(echo: Echo, door: HttpDoor) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1)
    writer.write(get("/large") * 50)
    await writer.drain()
    await echo.large.wait()
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(echo.asked) < 50
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await reader.read()


# Ports and stopping


async def test_several_doors_share_a_port(echo: Echo) -> None:
    other = Echo()
    async with opened(echo) as first, opened(other, port=first.port) as second:
        assert first.port == second.port
        while not (echo.asked and other.asked):
            await talk(first.port, get("/", "connection: close"))


async def test_a_port_that_somebody_has_alone_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"127.0.0.1, port {port}"):
            await HttpDoor(Echo(), "127.0.0.1", port).start()  # type: ignore[arg-type]


async def test_a_stopping_door_answers_what_it_has_and_closes(echo: Echo) -> None:
    async with opened(echo) as door:
        talking = asyncio.ensure_future(talk(door.port, get("/wait")))
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", door.port)
        await echo.waiting.wait()
        stopping = asyncio.ensure_future(door.stop(grace=60))
        assert await idle_reader.read() == b""
        idle_writer.close()
        assert not stopping.done()
        echo.release.set()
        assert bodies(await talking)[0]["path"] == "/wait"
        await stopping
        with pytest.raises(ConnectionError):
            await talk(door.port, get("/"))


async def test_a_stopping_door_cuts_what_takes_too_long(echo: Echo) -> None:
    async with opened(echo) as door:
        talking = asyncio.ensure_future(talk(door.port, get("/wait")))
        await echo.waiting.wait()
        await door.stop(grace=0.0)
        assert echo.cancelled.is_set()
        await asyncio.gather(talking, return_exceptions=True)


async def test_a_door_that_never_opened_stops() -> None:
    await HttpDoor(Echo()).stop()  # type: ignore[arg-type]


def test_all_addresses_take_both_families() -> None:
    with listen("", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert client.getpeername()[1] == port
