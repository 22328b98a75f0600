"""Flags of the doors: where they listen, whom they trust, and how they answer."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from shardserve.batching.errors import InvalidArgument
from shardserve.cluster.certificates import read_certificates
from shardserve.cluster.door_config import Monitoring, read_monitoring
from shardserve.cluster.flags.group import flag, size
from shardserve.cluster.options import DoorOptions
from shardserve.cluster.sessions import Sessions
from shardserve.router.trace_collector import collector_of


@dataclass(frozen=True)
class DoorFlags:
    PANEL: ClassVar[str] = "Doors"

    port: Annotated[int, flag("Port of gRPC; 0 for none.")] = 8500
    rest_api_port: Annotated[int, flag("Port of REST; 0 for none.")] = 0
    host: Annotated[
        str | None,
        flag(
            "Interface to listen on; empty for all.",
            show_default="127.0.0.1; tensorflow_model_server: all",
        ),
    ] = None
    grpc_socket_path: Annotated[
        str, flag("A Unix socket for gRPC, besides the port.", metavar="PATH", show_default=False)
    ] = ""
    ssl_config_file: Annotated[
        Path | None,
        flag("Certificates for gRPC and REST: an SSLConfig in text format.", metavar="FILE"),
    ] = None
    rest_api_timeout_in_ms: Annotated[int, flag("For a REST request.", min=1)] = 30000
    rest_api_enable_cors_support: Annotated[
        bool, flag("Let web pages of any origin read replies.")
    ] = False
    rest_api_compress_from: Annotated[
        int | None,
        flag(
            "Compress replies this large for clients that take gzip.",
            parser=size,
            metavar="SIZE",
            show_default="never",
        ),
    ] = None
    rest_api_num_threads: Annotated[
        int | None,
        flag(
            "Predictions over REST that are answered at a time; others wait.",
            min=1,
            show_default="all",
        ),
    ] = None
    grpc_max_threads: Annotated[
        int | None,
        flag("RPCs that are answered at a time; others are refused.", min=1, show_default="all"),
    ] = None
    grpc_channel_arguments: Annotated[
        str,
        flag(
            "gRPC's own, such as grpc.max_connection_age_ms=2000; several by comma.",
            metavar="KEY=VALUE",
            show_default=False,
        ),
    ] = ""
    monitoring_config_file: Annotated[
        Path | None,
        flag("Path of the metrics page: a MonitoringConfig in text format.", metavar="FILE"),
    ] = None
    enable_serialization_as_tensor_content: Annotated[
        bool, flag("Answer gRPC with tensor_content rather than typed fields.")
    ] = False
    enable_signature_method_name_check: Annotated[
        bool, flag("A signature answers only the calls that its method_name is for.")
    ] = False
    enable_grpc_healthcheck_service: Annotated[
        bool, flag("gRPC's health service, which is always there.")
    ] = True
    enable_profiler: Annotated[
        bool, flag("TensorFlow's ProfilerService on gRPC, for TensorBoard.")
    ] = True
    drain_seconds: Annotated[
        float,
        flag("After SIGTERM, how long requests are answered while probes get 503.", min=0),
    ] = 3
    trace_endpoint: Annotated[
        str | None,
        flag(
            "OTLP collector of requests' traces: gRPC, or HTTP if it has a path or port 4318.",
            metavar="URL",
            show_default="OTEL_EXPORTER_OTLP_ENDPOINT, or none",
        ),
    ] = None


def doors_of(flags: DoorFlags, sessions: Sessions, default_host: str) -> DoorOptions:
    """Raises NotFound or InvalidArgument, naming the file or the flag; nothing of a key is said."""
    return DoorOptions(
        host=default_host if flags.host is None else flags.host,
        grpc_port=flags.port,
        rest_port=flags.rest_api_port,
        rest_timeout=flags.rest_api_timeout_in_ms / 1000.0,
        sessions=sessions,
        grpc_socket=flags.grpc_socket_path.removeprefix("unix:"),
        tls=None if flags.ssl_config_file is None else read_certificates(flags.ssl_config_file),
        tls_file=flags.ssl_config_file,
        monitoring=_monitoring(flags.monitoring_config_file),
        cors=flags.rest_api_enable_cors_support,
        compress_from=flags.rest_api_compress_from,
        tensor_content=flags.enable_serialization_as_tensor_content,
        check_method_names=flags.enable_signature_method_name_check,
        grpc_max_rpcs=flags.grpc_max_threads,
        grpc_channel_arguments=_channel_arguments(flags.grpc_channel_arguments),
        profiler=flags.enable_profiler,
        drain_seconds=flags.drain_seconds,
        rest_max_requests=flags.rest_api_num_threads,
        trace_collector=collector_of(flags.trace_endpoint, os.environ),
    )


def warnings_of_doors(flags: DoorFlags, given: Collection[str]) -> list[str]:
    """What is done otherwise than it was asked for."""
    if "enable_grpc_healthcheck_service" in given and not flags.enable_grpc_healthcheck_service:
        return ["--enable_grpc_healthcheck_service=false: the health service is always there"]
    return []


def _monitoring(path: Path | None) -> Monitoring:
    return Monitoring() if path is None else read_monitoring(path)


def _channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    return tuple(_channel_argument(pair) for pair in text.split(",") if pair)


def _channel_argument(pair: str) -> tuple[str, int | str]:
    """An integer where the value is one, as the original does it."""
    key, equals, value = pair.partition("=")
    if not key or not equals:
        raise InvalidArgument(f"--grpc_channel_arguments takes KEY=VALUE by comma, not {pair!r}")
    digits = value.removeprefix("-")
    return key, int(value) if digits.isascii() and digits.isdecimal() else value
