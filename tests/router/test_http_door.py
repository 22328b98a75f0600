"""The REST door over real sockets: HTTP as clients speak it, well and badly."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import runpy
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shardserve.batching.errors import Unavailable
from shardserve.router import http_protocol
from shardserve.router.handlers import Handlers
from shardserve.router.http_application import ClientBounds
from shardserve.router.http_door import HttpDoor
from shardserve.router.listening import listen
from shardserve.router.metrics import Metrics
from shardserve.router.rest import Response, Rest
from tests.shards.plane import until

MAX_BODY = 1 << 20
BOUNDS = ClientBounds(body=MAX_BODY, idle_seconds=1)
IMPATIENT = replace(BOUNDS, head_seconds=0.01, idle_seconds=600)
LATE = b"The request's headers did not come within 0.01 seconds."

PREDICT = "/v1/models/half_plus_two:predict"
BODY = b'{"instances": [1, 2, 5]}'


class Echo:
    """A REST API that answers what it was asked, or waits until it may."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.padding = 4 << 20
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
            padding = b" " * self.padding
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
async def opened(
    rest: Any, bounds: ClientBounds = BOUNDS, **options: Any
) -> AsyncIterator[HttpDoor]:
    door = HttpDoor(rest, "127.0.0.1", bounds=bounds, **options)
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


@contextlib.contextmanager
def talking(rest: Any) -> Iterator[Callable[..., bytes]]:
    """`talk` to one door for all examples of a test."""
    with asyncio.Runner() as runner:
        doors = contextlib.AsyncExitStack()
        door = runner.run(doors.enter_async_context(opened(rest)))
        try:
            yield lambda *pieces: runner.run(talk(door.port, *pieces))
        finally:
            runner.run(doors.aclose())


async def talk(port: int, *pieces: bytes) -> bytes:
    """All that comes back until the server closes, for `pieces` sent one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    received = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return received


async def write_on(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """Until the connection breaks."""
    while True:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)


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


def test_requests_are_answered_in_order_however_they_are_cut() -> None:
    @given(data=st.data())
    @settings(max_examples=25, deadline=None)
    def check(data: st.DataObject) -> None:
        sizes = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=6))
        sent = b"".join(
            f"POST /{place} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n".encode()
            + b"x" * size
            for place, size in enumerate(sizes)
        ) + get("/last", "connection: close")
        cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=5)))
        pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
        replies = bodies(ask(*pieces))
        asked = [*(f"/{n}" for n in range(len(sizes))), "/last"]
        assert [reply["path"] for reply in replies] == asked
        assert [reply["size"] for reply in replies] == [*sizes, 0]

    with talking(Echo()) as ask:
        check()


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

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0
        self.refused_one = asyncio.Event()
        self.reply_padding = 0

    def refusal(self, method: str, path: str, headers: Any) -> Response | None:
        if path != "/busy":
            return None
        self.refusals += 1
        self.refused_one.set()
        given = headers.get("x-request-id") or ""
        found = (("content-type", "application/json"), ("x-request-id", given))
        return Response(503, found, b'{"error": "busy"}' + b" " * self.reply_padding)


def test_what_is_refused_by_its_head_leaves_the_others_in_order() -> None:
    @given(data=st.data())
    @settings(max_examples=20, deadline=None)
    def check(data: st.DataObject) -> None:
        busy = data.draw(st.lists(st.booleans(), min_size=1, max_size=6))
        chunked = data.draw(st.lists(st.booleans(), min_size=len(busy), max_size=len(busy)))
        sent = b"".join(map(_post, busy, chunked)) + get("/last", "connection: close")
        places = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1), max_size=8)))
        replies = bodies(ask(*(sent[a:b] for a, b in itertools.pairwise([0, *places, len(sent)]))))
        # What comes while another is being answered waits behind it, and is refused by nobody here.
        assert replies[0] == {"error": "busy"} or not busy[0]
        asked = [*("/busy" if one else "/idle" for one in busy), "/last"]
        assert [reply.get("path", "/busy") for reply in replies] == asked[: len(replies)]
        if len(replies) < len(asked):
            # Chunks may be endless, so nothing that follows them is heard.
            assert replies[-1] == {"error": "busy"}
            assert chunked[len(replies) - 1]

    with talking(Refusing()) as ask:
        check()


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


async def test_a_refused_client_of_http_1_0_is_let_go() -> None:
    async with opened(Refusing()) as door:
        asked = b"POST /busy HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n"
        assert b"connection: close" in await talk(door.port, asked)


async def test_what_follows_a_refusal_may_take_longer_than_a_connection_may_be_idle() -> None:
    refusing = Refusing()
    async with opened(refusing, replace(BOUNDS, idle_seconds=0)) as door:
        refused = b"POST /busy HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
        talking = asyncio.create_task(talk(door.port, refused + get("/wait")))
        await refusing.waiting.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        refusing.release.set()
        assert [reply.get("path") for reply in bodies(await talking)] == [None, "/wait"]


async def test_who_reads_no_refusals_is_sent_no_more_of_them() -> None:
    refusing = Refusing()
    refusing.reply_padding = 1 << 18
    async with opened(refusing) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1)
        asked = b"POST /busy HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
        writer.write(asked * 50 + get("/last", "connection: close"))
        await refusing.refused_one.wait()
        assert refusing.refusals < 50
        replies = bodies(await asyncio.wait_for(reader.read(), 60))
        writer.close()
    assert len(replies) == 51
    assert replies[-1]["path"] == "/last"


async def test_a_refused_body_that_does_not_come_is_not_waited_for() -> None:
    async with opened(Refusing(), replace(BOUNDS, body_seconds=0.01)) as door:
        received = await talk(door.port, b"POST /busy HTTP/1.1\r\ncontent-length: 5\r\n\r\na")
    assert received.startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize(
    ("path", "head", "status"),
    [
        ("/busy", b"transfer-encoding: chunked", 503),
        ("/busy", b"content-length: 99999999", 503),
        ("/idle", b"transfer-encoding: chunked", 413),
        ("/idle", b"content-length: 99999999", 413),
    ],
)
async def test_an_endless_body_that_is_answered_early_is_cut_off(
    path: str, head: bytes, status: int
) -> None:
    async with opened(
        Refusing(), ClientBounds(1 << 10, idle_seconds=600, linger_seconds=0.01)
    ) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"POST %b HTTP/1.1\r\n%b\r\n\r\n800\r\n" % (path.encode(), head))
        writer.write(b"x" * 0x800)
        received = await reader.read()
        assert received.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close" in received
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(write_on(writer, b"x" * 8192), 60)
        writer.transport.abort()


@pytest.mark.parametrize("behind", [get("/b"), b"GET /b HTTP/1.1\r\n"], ids=["whole", "begun"])
async def test_what_comes_behind_the_last_reply_holds_up_no_end(behind: bytes) -> None:
    bounds = replace(IMPATIENT, linger_seconds=0.01)
    async with opened(Refusing(), bounds) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(_post(busy=True, chunked=True) + behind)
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(write_on(writer, b"x" * 8192), 60)
        writer.transport.abort()


async def test_what_is_not_http_behind_the_last_reply_is_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened(Refusing()) as door:
        received = await talk(door.port, _post(busy=True, chunked=True) + b"no HTTP\r\n\r\n")
    assert bodies(received) == [{"error": "busy"}]
    assert "Fatal error" not in caplog.text


async def test_a_body_that_does_not_begin_is_not_waited_for(echo: Echo) -> None:
    async with opened(echo, replace(BOUNDS, body_seconds=0.01)) as door:
        received = await talk(door.port, b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in received
    assert echo.asked == []


async def test_a_client_that_says_nothing_is_let_go(echo: Echo) -> None:
    async with opened(echo, IMPATIENT) as door:
        assert await talk(door.port) == b""


async def test_a_head_that_does_not_end_is_not_waited_for(echo: Echo) -> None:
    async with opened(echo, IMPATIENT) as door:
        received = await talk(door.port, b"GET / HTTP/1.1\r\nhost: x\r\n")

    assert received.startswith(b"HTTP/1.1 408 ")
    assert received.endswith(LATE)
    assert echo.asked == []


@pytest.mark.parametrize("begun", [b"G", b"\r\n", b"GET / HTTP/1.1\r\na: b\r\n"])
async def test_nor_is_a_later_one(echo: Echo, begun: bytes) -> None:
    async with opened(echo, IMPATIENT) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(get("/a"))
        await reader.readuntil(b"}")
        writer.write(begun)
        received = await asyncio.wait_for(reader.read(), 60)
        writer.close()

    assert echo.asked == ["/a"]
    assert received == b"" or received.endswith(LATE)


@pytest.mark.parametrize("before", [b"", get("/a")], ids=["first", "later"])
@pytest.mark.parametrize("begun", [b"\r\n", b"G"])
async def test_nor_is_one_after_a_refusal(before: bytes, begun: bytes) -> None:
    async with opened(Refusing(), IMPATIENT) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        if before:
            writer.write(before)
            await reader.readuntil(b"}")
        writer.write(b"POST /busy HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        await reader.readuntil(b"}")
        writer.write(begun)
        received = await asyncio.wait_for(reader.read(), 60)
        writer.close()

    assert received == b"" or received.endswith(LATE)


async def test_a_head_may_be_late_while_its_client_waits_for_an_answer(echo: Echo) -> None:
    async with opened(echo, IMPATIENT) as door:
        talking = asyncio.create_task(talk(door.port, get("/wait"), b"GET /b HTTP/1.1\r\n"))
        await echo.waiting.wait()
        late = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.03, late.set_result, None)
        await late
        echo.release.set()
        received = await talking

    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(LATE)
    assert echo.asked == ["/wait"]


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


CHUNKED = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("begin", "line"),
    [
        (b"GET / HTTP/1.1\r\na: ", b"b" * 100),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
        (b"GET /", b"b" * 100),
        (CHUNKED + b"\r\n1\r\na\r\n0\r\na: ", b"b" * 100),
        (CHUNKED + b"\r\n1\r\na\r\n0\r\n", b"a: b\r\n"),
    ],
    ids=["a header", "headers", "a path", "a trailer", "trailers"],
)
async def test_what_goes_on_and_on_is_cut_off(door: HttpDoor, begin: bytes, line: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(begin)
    writing = asyncio.create_task(write_on(writer, line * 1000))
    assert await asyncio.wait_for(reader.read(13), 60) == b"HTTP/1.1 400 "
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    writer.transport.abort()


async def test_trailers_are_no_headers(door: HttpDoor) -> None:
    chunk = b"connection: close\r\n\r\n1\r\na\r\n0\r\nx-given: late\r\n\r\n"
    [reply] = bodies(await talk(door.port, CHUNKED + chunk))
    assert (reply["size"], reply["x"]) == (1, None)


async def test_a_long_body_does_not_count_as_the_next_requests_head(
    door: HttpDoor, echo: Echo
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(b"POST /wait HTTP/1.1\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000)
    last = get("/last", "connection: close")
    writer.write(last[:10])
    await echo.waiting.wait()
    writer.write(last[10:])
    echo.release.set()
    assert [reply["path"] for reply in bodies(await reader.read())] == ["/wait", "/last"]
    writer.close()


async def test_a_client_that_goes_away_cancels_its_request(door: HttpDoor, echo: Echo) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(get("/wait"))
    await echo.waiting.wait()
    writer.close()
    await asyncio.wait_for(echo.cancelled.wait(), 60)


async def test_so_does_one_that_is_sent_away_while_others_wait_behind_that(
    door: HttpDoor, echo: Echo
) -> None:
    received = await talk(door.port, get("/wait") + get("/b") + b"no HTTP\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")
    await asyncio.wait_for(echo.cancelled.wait(), 20)
    assert echo.asked == ["/wait"]


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


async def test_replies_let_in_no_more_than_is_answered(echo: Echo, door: HttpDoor) -> None:
    padded = get("/a", "x-padding: " + "x" * 8192)
    talking = asyncio.create_task(talk(door.port, padded * 1000 + get("/b", "connection: close")))
    most = 0
    while not talking.done():
        for connection in door._server.server_state.connections:
            assert isinstance(connection, HttpToolsProtocol)
            most = max(most, len(connection.pipeline))
        await asyncio.sleep(0)
    assert [reply["path"] for reply in bodies(await talking)] == ["/a"] * 1000 + ["/b"]
    assert 0 < most * len(padded) < 1 << 20


@pytest.mark.parametrize("behind", [b"", get("/b")], ids=["last", "not last"])
@pytest.mark.parametrize("ends", ["x-a: b", "connection: close"])
async def test_a_client_that_takes_nothing_is_let_go(echo: Echo, ends: str, behind: bytes) -> None:
    echo.padding = 32 << 20
    bounds = replace(BOUNDS, idle_seconds=600, unread_seconds=0.01)
    async with opened(echo, bounds) as door:
        _, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1)
        writer.write(get("/large", ends) + behind)
        await echo.large.wait()
        await until(lambda: not door._server.server_state.connections)
        writer.transport.abort()


async def test_so_is_one_that_leaves_the_rest_when_its_time_is_over(echo: Echo) -> None:
    echo.padding = 32 << 20
    bounds = replace(BOUNDS, idle_seconds=0, unread_seconds=0.01)
    async with opened(echo, bounds) as door:
        _, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1)
        writer.write(get("/large"))
        await echo.large.wait()
        await until(lambda: not door._server.server_state.connections)
        writer.transport.abort()


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


PATIENT = replace(BOUNDS, idle_seconds=600, linger_seconds=600.0)


@pytest.mark.parametrize("path", ["/idle", "/busy"])
async def test_each_reply_of_a_draining_door_is_the_last_of_its_connection(path: str) -> None:
    async with opened(Refusing(), PATIENT) as door:
        client = connection(door)

        def ask() -> str | None:
            client.request("POST", path, body=b"x" * 4096)
            reply = client.getresponse()
            reply.read()
            return reply.getheader("connection")

        assert await in_thread(ask) is None
        await door.drain()
        # The connection that is open already, then a new one, which `client` opens by itself.
        assert await in_thread(ask) == "close"
        assert await in_thread(ask) == "close"


async def test_a_draining_door_answers_all_that_came_before_it_closes() -> None:
    echo = Echo()
    async with opened(echo, PATIENT) as door:
        sent = get("/wait") + get("/b") + get("/c")
        talking = asyncio.create_task(talk(door.port, sent))
        await echo.waiting.wait()
        await door.drain()
        echo.release.set()
        received = await talking

    assert [reply["path"] for reply in bodies(received)] == ["/wait", "/b", "/c"]
    assert received.count(b"connection: close") == 1


async def test_a_draining_door_lets_connections_be_idle_until_it_stops(echo: Echo) -> None:
    async with opened(echo, PATIENT) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(get("/a"))
        await reader.readuntil(b"}")
        await door.drain()
        assert not reader.at_eof()
        await door.stop(grace=60)
        assert await reader.read() == b""
        writer.close()


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


async def test_a_stopping_door_does_not_wait_for_who_reads_nothing(echo: Echo) -> None:
    echo.padding = 32 << 20
    async with opened(echo) as door:
        _, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1)
        writer.write(get("/large") + get("/wait") + get("/end"))
        await echo.waiting.wait()
        echo.release.set()
        await asyncio.wait_for(door.stop(grace=0.0), 20)
        writer.transport.abort()


async def test_a_door_that_never_opened_stops() -> None:
    await HttpDoor(Echo()).stop()  # type: ignore[arg-type]


def test_all_addresses_take_both_families() -> None:
    with listen("", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert client.getpeername()[1] == port


def test_a_uvicorn_that_does_not_fit_is_refused_at_the_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(HttpToolsProtocol, "_start_asgi_task")
    with pytest.raises(ImportError, match="_start_asgi_task"):
        runpy.run_path(http_protocol.__file__)
