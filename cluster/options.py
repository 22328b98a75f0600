"""What to serve and how, as the command line says it. Plain data, checked once."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.model import PlanOptions


class Engine(enum.StrEnum):
    """Who runs routers and shards."""

    RAY = "ray"
    LOCAL = "local"


@dataclass(frozen=True)
class DoorOptions:
    """The direct doors: TensorFlow Serving's own ports. A port of 0 leaves that door shut.

    `rest_timeout` is in seconds. The threads are TensorFlow's own, see `session.Parallelism`.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 8500
    rest_port: int = 0
    rest_timeout: float = 30.0
    intra_op_threads: int = 0
    inter_op_threads: int = -1


@dataclass(frozen=True)
class RayOptions:
    """`address` None starts a Ray of our own; otherwise it is of one to join, or "auto"."""

    address: str | None = None
    routers: int = 1
    serve_http_port: int = 8000
    serve_grpc_port: int = 9000


@dataclass(frozen=True)
class Application:
    """The routers as an application of Ray Serve's, that serve the model of a controller's run.

    `is_guest` where Serve was there before it, and so is to stay when it ends.
    """

    name: str
    controller: str
    doors: DoorOptions
    ray: RayOptions
    is_guest: bool


@dataclass(frozen=True)
class ServeOptions:
    """All that `shardserve serve` needs to know."""

    model_name: str
    base_path: Path
    plan: PlanOptions = field(default_factory=PlanOptions)
    doors: DoorOptions = DoorOptions()
    engine: Engine = Engine.RAY
    ray: RayOptions = RayOptions()
    example: Path | None = None


def check(options: ServeOptions) -> None:
    """Raise InvalidArgument, naming the flag, for what no engine could do."""
    doors, ray = options.doors, options.ray
    if not options.model_name or "/" in options.model_name or ":" in options.model_name:
        raise InvalidArgument(
            f"--model_name must not be empty or hold '/' or ':', not {options.model_name!r}"
        )
    if doors.grpc_port == 0 and doors.rest_port == 0:
        raise InvalidArgument("--port and --rest_api_port are both 0: nothing would be served")
    if ray.routers < 1:
        raise InvalidArgument(f"--routers must be at least 1, not {ray.routers}")
    _check_ports(ports_by_flag(options))


def ports_by_flag(options: ServeOptions) -> dict[str, int]:
    """Every port that the user chooses and the engine opens, by its flag."""
    ports = {"--port": options.doors.grpc_port, "--rest_api_port": options.doors.rest_port}
    if options.engine is Engine.RAY:
        ports["--serve_http_port"] = options.ray.serve_http_port
        ports["--serve_grpc_port"] = options.ray.serve_grpc_port
    return ports


def _check_ports(ports: dict[str, int]) -> None:
    taken: dict[int, str] = {}
    for flag, port in ports.items():
        if not 0 <= port <= 65535:
            raise InvalidArgument(f"{flag} must be in [0, 65535], not {port}")
        if port and port in taken:
            raise InvalidArgument(f"{taken[port]} and {flag} are both {port}")
        taken[port] = flag
