"""TensorFlow's ProfilerService on the gRPC door, for TensorBoard and TensorFlow's own client.

The trace goes back to whoever asked for it, as `ProfileToolData`, and its client writes it where it
was told to. TensorFlow's own service writes it on the server, at a path that the client chooses.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tensorflow.python.framework import errors
from tensorflow.python.profiler.internal import _pywrap_profiler

from shardserve.batching.errors import AlreadyExists, InvalidArgument, error_of
from shardserve.batching.text_messages import message_classes

SERVICE = "tensorflow.ProfilerService"
#: A trace is kept in memory until it ends.
MAX_SECONDS = 60.0

_XPLANE = "xplane.pb"
#: What is read of TensorFlow's profiler_service.proto and profiler_options.proto. A response's
#: first five fields are reserved.
_MESSAGES = message_classes(
    "tensorflow",
    {
        "ProfileOptions": {
            "include_dataset_ops": "bool",
            "host_tracer_level": "int64",
            "device_tracer_level": "int64",
            "python_tracer_level": "int64",
        },
        "ProfileRequest": {
            "duration_ms": "int64",
            "max_events": "int64",
            "tools": "repeated string",
            "opts": "ProfileOptions",
        },
        "ProfileToolData": {"name": "string", "data": "bytes"},
        "ProfileResponse": {
            **{f"reserved_{number}": "bool" for number in range(1, 6)},
            "tool_data": "repeated ProfileToolData",
            "empty_trace": "bool",
        },
    },
)


class Profiler:
    """Traces what this process does, one trace at a time."""

    def __init__(self) -> None:
        self._is_tracing = False

    async def profile(self, raw: bytes) -> bytes:
        """A serialised ProfileResponse to a serialised ProfileRequest, when its time is over.

        Raises InvalidArgument for what is no such request or for a time that is too long,
        AlreadyExists while another trace is taken. A cancelled one ends at once.
        """
        request = _parsed(raw)
        if self._is_tracing:
            raise AlreadyExists("Another profiler session is active")
        self._is_tracing = True
        try:
            trace = await _trace(request)
        finally:
            self._is_tracing = False
        response = _MESSAGES["ProfileResponse"](empty_trace=not trace)
        if trace:
            response.tool_data.add(name=_XPLANE, data=trace)
        serialized: bytes = response.SerializeToString()
        return serialized

    def handler(self, answered: Any) -> Any:
        """The service's generic handler. `answered` makes of `profile` what gRPC calls."""
        method = grpc.unary_unary_rpc_method_handler(answered(self.profile))
        return grpc.method_handlers_generic_handler(SERVICE, {"Profile": method})


def _parsed(raw: bytes) -> Any:
    try:
        request = _MESSAGES["ProfileRequest"].FromString(raw)
    except DecodeError:
        raise InvalidArgument("the request is not a tensorflow.ProfileRequest") from None
    if not 0 <= request.duration_ms <= MAX_SECONDS * 1e3:
        raise InvalidArgument(
            f"duration_ms must be at most {MAX_SECONDS * 1e3:.0f}, not {request.duration_ms}"
        )
    return request


async def _trace(request: Any) -> bytes:
    session = _pywrap_profiler.ProfilerSession()
    levels = {
        "host_tracer_level": request.opts.host_tracer_level,
        "device_tracer_level": request.opts.device_tracer_level,
        "python_tracer_level": request.opts.python_tracer_level,
    }
    try:
        session.start("", levels)
    except errors.OpError as error:
        # The process may be traced from elsewhere, as by the model's own code.
        raise error_of(error.error_code, error.message) from None
    try:
        await asyncio.sleep(request.duration_ms / 1e3)
    except asyncio.CancelledError:
        session.stop()
        raise
    trace: bytes = await asyncio.to_thread(session.stop)
    return trace
