"""TensorFlow Serving's files about its doors: --ssl_config_file and --monitoring_config_file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.text_messages import message_classes, parse_message, read_text
from shardserve.router.tls import Tls

#: As `shardserve.router.rest` has it, which loads TensorFlow.
DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"

_MESSAGES = message_classes(
    "tensorflow.serving",
    {
        "PrometheusConfig": {"enable": "bool", "path": "string"},
        "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
        "SSLConfig": {
            "server_key": "string",
            "server_cert": "string",
            "custom_ca": "string",
            "client_verify": "bool",
        },
    },
)


@dataclass(frozen=True)
class Monitoring:
    """Whether Prometheus may ask over REST, and where."""

    enabled: bool = False
    path: str = DEFAULT_METRICS_PATH


def read_tls(path: Path) -> Tls:
    """Raises NotFound or InvalidArgument, naming the file, but nothing of the key."""
    text = read_text(path)
    try:
        message = parse_message(text, _MESSAGES["SSLConfig"], str(path))
    except InvalidArgument:
        # The parser quotes what it could not read, and that may be the key.
        raise InvalidArgument(
            f"{path}: Error parsing text-format tensorflow.serving.SSLConfig"
        ) from None
    if not message.server_key or not message.server_cert:
        raise InvalidArgument(f"{path}: server_key and server_cert are both needed")
    if message.client_verify and not message.custom_ca:
        raise InvalidArgument(f"{path}: client_verify needs a custom_ca")
    return Tls(
        message.server_key.encode(),
        message.server_cert.encode(),
        message.custom_ca.encode(),
        message.client_verify,
    )


def read_monitoring(path: Path) -> Monitoring:
    """Raises NotFound or InvalidArgument, naming the file."""
    config = parse_message(
        read_text(path), _MESSAGES["MonitoringConfig"], str(path)
    ).prometheus_config
    where = config.path or DEFAULT_METRICS_PATH
    if not where.startswith("/"):
        raise InvalidArgument(f"{path}: prometheus_config.path must begin with '/', not {where!r}")
    return Monitoring(config.enable, where)
