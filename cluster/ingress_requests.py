"""Requests as Ray Serve's ingress hands them over, to the handlers and back. As thin as a door."""

from __future__ import annotations

import math
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from shardserve.batching.errors import PermissionDenied, ServingError
from shardserve.router import logs
from shardserve.router.http_application import MAX_BODY
from shardserve.router.prediction import RPCS, PredictionHandlers
from shardserve.router.rest import Response as RestResponse
from shardserve.router.rest import Rest
from shardserve.router.servable import RequestContext
from shardserve.router.status_codes import GRPC_STATUS, grpc_message

_SHUT = "These models are not served through Ray Serve's ingress."


class Encoded:
    """A reply that is serialised already: Serve calls `SerializeToString` on what it is given."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    def SerializeToString(self) -> bytes:  # noqa: N802 (protobuf's name)
        return self._payload


class Ingress:
    """What Serve's calls of a router do. The client's deadline is Serve's to keep: it cancels.

    Whoever wants no ingress has one that is shut: Serve, where it has one for others, lets each
    replica listen for itself, in the clear.
    """

    def __init__(self, rest: Rest, prediction: PredictionHandlers, *, is_open: bool = True) -> None:
        self._rest = rest
        self._prediction = prediction
        self._is_open = is_open

    async def http(self, request: Request) -> Response:
        """Read the body, as far as it may go, and answer."""
        answer = await self._http(request)
        # Serve sends the request's id itself.
        headers = {name: value for name, value in answer.headers if name != logs.REQUEST_ID}
        return Response(answer.body, answer.status, headers)

    async def _http(self, request: Request) -> RestResponse:
        if not self._is_open:
            return self._rest.refused(403, _SHUT)
        body = await _body(request)
        if body is None:
            return self._rest.refused(413, f"The request body is longer than {MAX_BODY} bytes.")
        return await self._rest.handle(request.method, _path(request), request.headers, body)

    async def rpc(self, method: str, raw: bytes, rpc: Any) -> Encoded:
        """The reply to a serialised request of a method in `RPCS`. What fails is set on `rpc`."""
        headers = dict(rpc.invocation_metadata())
        request_id = logs.request_id(headers.get(logs.REQUEST_ID))
        context = RequestContext(request_id, math.inf, headers=headers)
        try:
            if not self._is_open:
                raise PermissionDenied(_SHUT)
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
