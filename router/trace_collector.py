"""Where traces go, by a flag or OpenTelemetry's variables. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from shardserve.batching.errors import InvalidArgument

# As OpenTelemetry names them, and in its order.
_OWN_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_BASE_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_GRPC = "grpc"
_HTTP = "http/protobuf"
_HTTP_PORT = 4318


@dataclass(frozen=True)
class Collector:
    """An OTLP collector: "http://here:4317" for gRPC, "http://here:4318/v1/traces" over HTTP."""

    url: str
    over_http: bool = False


def collector_of(flag: str | None, environ: Mapping[str, str]) -> Collector | None:
    """Where traces go, by the flag or OpenTelemetry's variables; None if nowhere.

    It is gRPC unless a variable says HTTP, or, where none says anything, the URL has a path or
    OTLP's port for HTTP. Raises InvalidArgument for what is no URL, or a protocol that is not
    spoken here.
    """
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    own = flag or environ.get(_OWN_ENDPOINT)
    url = own or environ.get(_BASE_ENDPOINT)
    if not url:
        return None
    path, port = _parts(url)
    if _protocol(environ, _HTTP if path or port == _HTTP_PORT else _GRPC) == _GRPC:
        return Collector(url)
    # The variable for all signals is what each signal's path is added to.
    return Collector(url if own and path else f"{url.rstrip('/')}/v1/traces", over_http=True)


def _parts(url: str) -> tuple[str, int | None]:
    """The path and the port, where there are any."""
    try:
        parts = urlsplit(url)
        path, port = parts.path.rstrip("/"), parts.port
    except ValueError as error:
        raise InvalidArgument(f"trace endpoint {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument(f"a trace endpoint is http:// or https:// and a host, not {url!r}")
    return path, port


def _protocol(environ: Mapping[str, str], default: str) -> str:
    for name in _PROTOCOLS:
        found = environ.get(name)
        if found in (_GRPC, _HTTP):
            return found
        if found:
            raise InvalidArgument(f"{name} is {_GRPC} or {_HTTP}, not {found!r}")
    return default
