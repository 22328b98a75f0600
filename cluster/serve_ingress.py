"""Where Ray Serve's ingress listens. A Serve that runs already has its own ports. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardserve.cluster.options import RayOptions


@dataclass(frozen=True)
class ServeIngress:
    """A port of 0 is shut."""

    host: str = ""
    http_port: int = 0
    grpc_port: int = 0


def ignored(asked: RayOptions, ingress: ServeIngress) -> list[str]:
    """What to say of the flags that a Serve which runs already does not heed."""
    if not asked.has_ingress:
        return []
    ports = {
        f"--serve_http_port={asked.serve_http_port}": (asked.serve_http_port, ingress.http_port),
        f"--serve_grpc_port={asked.serve_grpc_port}": (asked.serve_grpc_port, ingress.grpc_port),
    }
    return [_said(flag, port) for flag, (wanted, port) in ports.items() if wanted != port]


def _said(flag: str, port: int) -> str:
    listens = f"listens on {port}" if port else "has no such ingress for these models"
    return f"{flag} is not heeded: Serve runs in this Ray already, and {listens}"
