"""Requests as Ray Serve's ingress hands them over, to the handlers and back. As thin as a door."""

from __future__ import annotations

import math
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from shardserve.batching.errors import ServingError
from shardserve.router import logs
from shardserve.router.http_application import MAX_BODY
from shardserve.router.prediction import RPCS, PredictionHandlers
from shardserve.router.rest import Rest
from shardserve.router.servable import RequestContext
from shardserve.router.status_codes import GRPC_STATUS, grpc_message


class Encoded:
    """A reply that is serialised already: Serve calls `SerializeToString` on what it is given."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    def SerializeToString(self) -> bytes:  # noqa: N802 (protobuf's name)
        return self._payload


class Ingress:
    """What Serve's calls of a router do. The client's deadline is Serve's to keep: it cancels."""

    def __init__(self, rest: Rest, prediction: PredictionHandlers) -> None:
        self._rest = rest
        self._prediction = prediction

    async def http(self, request: Request) -> Response:
        """Read the body, as far as it may go, and answer."""
        body = await _body(request)
        if body is None:
            answer = self._rest.refused(413, f"The request body is longer than {MAX_BODY} bytes.")
        else:
            answer = await self._rest.handle(request.method, _path(request), request.headers, body)
        # Serve sends the request's id itself.
        headers = {name: value for name, value in answer.headers if name != logs.REQUEST_ID}
        return Response(answer.body, answer.status, headers)

    async def rpc(self, method: str, raw: bytes, rpc: Any) -> Encoded:
        """The reply to a serialised request of a method in `RPCS`. What fails is set on `rpc`."""
        headers = dict(rpc.invocation_metadata())
        request_id = logs.request_id(headers.get(logs.REQUEST_ID))
        context = RequestContext(request_id, math.inf, headers=headers)
        try:
            return Encoded(await self._prediction.answer(RPCS[method], raw, context))
        except ServingError as error:
            rpc.set_code(GRPC_STATUS[error.code])
            rpc.set_details(grpc_message(error.message))
            rpc.set_trailing_metadata([(logs.REQUEST_ID, context.request_id)])
            return Encoded(b"")


async def _body(request: Request) -> bytes | None:
    chunks, size = [], 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY:
            return None
    return b"".join(chunks)


def _path(request: Request) -> str:
    """The path as it came, percent-encoded and with its query."""
    path: str = request.scope["raw_path"].decode("latin-1")
    query: str = request.scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path
