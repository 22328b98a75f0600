"""The environment that Ray reads when it is imported, so it is set before that.

A Ray of our own is open to this machine's loopback interface only, and asks for a token made for
this run. What Ray Serve and HAProxy open on all interfaces besides cannot be closed by settings:
HAProxy's statistics and metrics, and each replica's own gRPC port.
"""

from __future__ import annotations

import secrets
from collections.abc import MutableMapping
from dataclasses import dataclass

#: Ray Serve reads these at import, on every node of a cluster.
SERVE_SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Ours are the only clients: nobody has to be told that a replica goes away.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    # By default Serve takes 8500, TensorFlow Serving's gRPC port, for a proxy of its own.
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": "8510",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": "8511",
}


@dataclass(frozen=True)
class IngressPorts:
    """Ports that Serve's ingress opens besides HTTP and gRPC, each a different free one."""

    fallback_http: int
    fallback_grpc: int
    haproxy_stats: int
    haproxy_metrics: int


def join_settings() -> dict[str, str]:
    """For joining a cluster that runs already."""
    return {"RAY_USAGE_STATS_ENABLED": "0", **SERVE_SETTINGS}


def local_settings(ports: IngressPorts) -> dict[str, str]:
    """For a Ray of our own. The token keeps others on this machine from running code in it."""
    return {
        **join_settings(),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        # Ray's name for "this machine only": all its servers listen on 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def apply(settings: dict[str, str], environ: MutableMapping[str, str]) -> None:
    """Set what the user has not set himself."""
    for name, value in settings.items():
        environ.setdefault(name, value)
