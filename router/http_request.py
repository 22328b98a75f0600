"""One HTTP/1.1 request as it comes in, and the bytes of its response."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus

import httptools

from shardserve.router.rest import Response


class Request:
    """Filled while it is parsed. Its `get` makes it the mapping of headers that `Rest` takes."""

    __slots__ = ("_chunks", "_size", "headers", "http_10", "keep_alive", "method", "refusal", "url")

    def __init__(self) -> None:
        #: Empty until the head is complete.
        self.method = ""
        self.url = b""
        self.http_10 = False
        self.headers: dict[bytes, bytes] = {}
        self.keep_alive = True
        #: What to answer instead of handling it.
        self.refusal: Response | None = None
        self._chunks: list[bytes] = []
        self._size = 0

    def get(self, name: str, /) -> str | None:
        """A header's value, by its name in lower case."""
        value = self.headers.get(name.encode("latin-1"))
        return None if value is None else value.decode("latin-1")

    @property
    def announced_size(self) -> int:
        """The length that its body will have, as far as the head says."""
        return int(self.headers.get(b"content-length", b"0"))

    @property
    def wants_continue(self) -> bool:
        return self.headers.get(b"expect", b"").lower() == b"100-continue"

    def add_body(self, chunk: bytes) -> int:
        """Keep a piece of the body; returns the bytes kept so far."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        return self._size

    def refuse(self, response: Response) -> None:
        """Answer `response`, forget the body, and close the connection after that."""
        self.refusal = response
        self.keep_alive = False
        self._chunks.clear()

    @property
    def body(self) -> bytes:
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    @property
    def path(self) -> str:
        """Path and query as they came, percent-encoded."""
        url = self.url
        if not url.startswith(b"/"):
            url = _without_host(url)
        return url.decode("latin-1")


def encode_response(response: Response, request: Request) -> tuple[bytes, bytes]:
    """Head and body, as they answer `request`."""
    head = [_status_line(response.status)]
    head += [f"{name}: {value}\r\n" for name, value in response.headers]
    head.append(f"content-length: {len(response.body)}\r\ndate: {_date()}\r\n")
    if not request.keep_alive:
        head.append("connection: close\r\n")
    elif request.http_10:
        head.append("connection: keep-alive\r\n")
    head.append("\r\n")
    return "".join(head).encode("latin-1"), b"" if request.method == "HEAD" else response.body


def _without_host(url: bytes) -> bytes:
    """The path of an absolute URL, as proxies send it."""
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return url
    return (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")


def _status_line(status: int) -> str:
    line = _STATUS_LINES.get(status)
    return line if line is not None else f"HTTP/1.1 {status} Unknown\r\n"


_STATUS_LINES = {
    499: "HTTP/1.1 499 Client Closed Request\r\n",
    **{int(s): f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus},
}


class _Clock:
    """The date header's text, made once a second."""

    second = 0
    text = ""


def _date() -> str:
    now = int(time.time())
    if now != _Clock.second:
        _Clock.second = now
        _Clock.text = formatdate(now, usegmt=True)
    return _Clock.text
