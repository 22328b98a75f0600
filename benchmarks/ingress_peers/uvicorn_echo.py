"""A bare echo on the HTTP server that our REST door is built on: uvicorn, httptools, uvloop."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that answers with the body it got."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    uvicorn.run(
        echo, port=int(sys.argv[1]), http="httptools", loop="uvloop", lifespan="off",
        interface="asgi3", access_log=False, log_level="critical",
    )  # fmt: skip
