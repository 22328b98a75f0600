"""What to serve and how, as the command line says it. Plain data, checked once."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from pathlib import Path

from shardserve.batching.errors import InvalidArgument
from shardserve.cluster.door_config import Monitoring
from shardserve.cluster.lifecycle import Policy, Retries, availability_preserving
from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.sessions import Sessions
from shardserve.router.tls import Tls
from shardserve.router.trace_collector import Collector
from shardserve.router.warm_up_options import WarmUpOptions
from shardserve.shards.model import PlanOptions

#: What a path of a Unix socket may be long, in bytes.
MAX_SOCKET_PATH = 107


class Engine(enum.StrEnum):
    """Who runs routers and shards."""

    RAY = "ray"
    LOCAL = "local"


@dataclass(frozen=True)
class Models:
    """Where the models come from.

    `configs` are those at start. A `config_file` is read again every `poll_seconds`, where those
    are more than 0, and the `options_file` of `cluster.model_options` with it. Base paths outside
    of `roots` are refused, always: at start, when the file is read again, and in reload requests;
    without roots any path may be. Those that are not there yet `are_waited_for`, or else refused
    at start. Requests are logged below `log_root` only. A model
    may be a function of Python's if it is among `python_servables`, as "MODULE:FUNCTION".
    """

    configs: tuple[ModelConfig, ...]
    config_file: Path | None = None
    poll_seconds: float = 0.0
    options_file: Path | None = None
    roots: tuple[Path, ...] = ()
    log_root: Path | None = None
    are_waited_for: bool = False
    python_servables: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ManagerOptions:
    """TensorFlow Serving's flags of the same names, in seconds.

    `loads` is how many versions load at the same time, over all models; `initial_loads` is that
    number until the models of the start are served.
    """

    policy: Policy = availability_preserving
    retries: Retries = field(default_factory=Retries)
    loads: int = 4
    initial_loads: int = 4
    poll_seconds: float = 1.0
    allow_labels_for_unavailable: bool = False


@dataclass(frozen=True)
class DoorOptions:
    """The direct doors: TensorFlow Serving's own ports. A port of 0 leaves that door shut.

    `rest_timeout` is in seconds. What is behind them runs in `sessions`.
    `grpc_socket` is the path of a Unix socket besides the port, "" for none. With `tls` all
    doors ask for it; it is what `tls_file` has, which is read again as it changes. Where there is
    a file without it, they wait for it.
    `grpc_max_rpcs` and `rest_max_requests` bound what is answered at the same time: gRPC refuses
    what is more, REST lets predictions wait. `grpc_channel_arguments` are gRPC's own.
    `cors` and `compress_from` are as for `router.rest.Rest`, `tensor_content` and
    `check_method_names` as for `router.handlers.HandlerOptions`. Traces go to `trace_collector`, if
    there is one; with `profiler` TensorFlow's own profiler is served over gRPC. A server that is to
    go says so to probes, and answers requests for `drain_seconds` more.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 8500
    rest_port: int = 0
    rest_timeout: float = 30.0
    sessions: Sessions = Sessions()  # noqa: RUF009 (frozen)
    grpc_socket: str = ""
    tls: Tls | None = None
    tls_file: Path | None = None
    monitoring: Monitoring = Monitoring()  # noqa: RUF009 (frozen)
    cors: bool = False
    compress_from: int | None = None
    tensor_content: bool = False
    check_method_names: bool = False
    grpc_max_rpcs: int | None = None
    grpc_channel_arguments: tuple[tuple[str, int | str], ...] = ()
    rest_max_requests: int | None = None
    trace_collector: Collector | None = None
    profiler: bool = True
    drain_seconds: float = 0.0


@dataclass(frozen=True)
class RayOptions:
    """`address` None starts a Ray of our own; otherwise it is of one to join, or "auto".

    With a `serve_http_port` of 0 Ray Serve's ingress stays shut, that of gRPC too.
    """

    address: str | None = None
    routers: int = 1
    serve_http_port: int = 8000
    serve_grpc_port: int = 9000

    @property
    def has_ingress(self) -> bool:
        return self.serve_http_port != 0


@dataclass(frozen=True)
class Application:
    """The routers as an application of Ray Serve's, that serve the models of a controller's run.

    `plan` has the batching parameters of the server.
    """

    name: str
    controller: str
    doors: DoorOptions
    ray: RayOptions
    plan: PlanOptions = PlanOptions()  # noqa: RUF009 (frozen)
    warm_up: WarmUpOptions = WarmUpOptions()  # noqa: RUF009 (frozen)

    def without_key(self) -> Application:
        """As Ray and Serve are told of it, which keep what they are told.

        Without the doors' certificate, that is, which the controller is told by its driver.
        """
        return replace(self, doors=replace(self.doors, tls=None))


@dataclass(frozen=True)
class ServeOptions:
    """All that `shardserve serve` needs to know.

    `defaults` go for models that have no options of their own, see `model_options.options_of`.
    `opened` are lines to say when the doors are open.
    """

    models: Models
    defaults: ModelOptions = ModelOptions()  # noqa: RUF009 (frozen)
    manager: ManagerOptions = field(default_factory=ManagerOptions)
    doors: DoorOptions = DoorOptions()
    engine: Engine = Engine.RAY
    ray: RayOptions = RayOptions()
    warm_up: WarmUpOptions = WarmUpOptions()  # noqa: RUF009 (frozen)
    example: Path | None = None
    opened: tuple[str, ...] = ()


def check(options: ServeOptions) -> None:
    """Raise InvalidArgument, naming the flag, for what no engine could do."""
    doors, ray = options.doors, options.ray
    if not (doors.grpc_port or doors.rest_port or doors.grpc_socket):
        raise InvalidArgument(
            "--port and --rest_api_port are both 0, and there is no --grpc_socket_path: nothing "
            "would be served"
        )
    if ray.routers < 1:
        raise InvalidArgument(f"--routers must be at least 1, not {ray.routers}")
    _check_socket(options)
    _check_ports(ports_by_flag(options))


def ports_by_flag(options: ServeOptions) -> dict[str, int]:
    """Every port that the user chooses and the engine opens, by its flag."""
    ports = {"--port": options.doors.grpc_port, "--rest_api_port": options.doors.rest_port}
    if options.engine is Engine.RAY and options.ray.has_ingress:
        ports["--serve_http_port"] = options.ray.serve_http_port
        ports["--serve_grpc_port"] = options.ray.serve_grpc_port
    return ports


def _check_socket(options: ServeOptions) -> None:
    path = options.doors.grpc_socket
    if len(path.encode()) > MAX_SOCKET_PATH:
        raise InvalidArgument(
            f"--grpc_socket_path is longer than the {MAX_SOCKET_PATH} bytes of a socket: {path}"
        )
    if path and options.engine is Engine.RAY and options.ray.routers > 1:
        raise InvalidArgument("--grpc_socket_path takes one router: --routers must be 1")


def _check_ports(ports: dict[str, int]) -> None:
    taken: dict[int, str] = {}
    for flag, port in ports.items():
        if not 0 <= port <= 65535:
            raise InvalidArgument(f"{flag} must be in [0, 65535], not {port}")
        if port and port in taken:
            raise InvalidArgument(f"{taken[port]} and {flag} are both {port}")
        taken[port] = flag
