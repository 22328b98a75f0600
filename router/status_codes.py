"""How the error tree looks on the clients' wires. Nothing else translates it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from shardserve.batching.errors import Code

HTTP_STATUS: Mapping[Code, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}

GRPC_STATUS: Mapping[Code, Any] = {Code(status.value[0]): status for status in grpc.StatusCode}

#: A gRPC message travels in a header, whose size is limited. The original cuts here too.
MAX_GRPC_MESSAGE = 1024

_CUT = "...TRUNCATED"


def grpc_message(message: str) -> str:
    """`message` as gRPC may carry it: at most `MAX_GRPC_MESSAGE` bytes, and a mark where cut."""
    raw = message.encode("utf-8", "replace")
    if len(raw) <= MAX_GRPC_MESSAGE:
        return raw.decode("utf-8")
    return raw[:MAX_GRPC_MESSAGE].decode("utf-8", "ignore") + _CUT
