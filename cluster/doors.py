"""The direct doors that the options ask for."""

from __future__ import annotations

from shardserve.cluster.options import DoorOptions
from shardserve.router.grpc_door import GrpcDoor, GrpcOptions
from shardserve.router.handlers import HandlerOptions
from shardserve.router.http_door import HttpDoor
from shardserve.router.prediction import PredictionHandlers
from shardserve.router.profiler import Profiler
from shardserve.router.rest import Rest

Door = HttpDoor | GrpcDoor


def handler_options(options: DoorOptions) -> HandlerOptions:
    return HandlerOptions(options.tensor_content, options.check_method_names)


def doors_of(options: DoorOptions, rest: Rest, prediction: PredictionHandlers) -> list[Door]:
    """Those to be opened; each still shut."""
    doors: list[Door] = []
    if options.rest_port:
        doors.append(HttpDoor(rest, options.host, options.rest_port, tls=options.tls))
    if options.grpc_port or options.grpc_socket:
        profiler = Profiler() if options.profiler else None
        wanted = grpc_options(options)
        doors.append(GrpcDoor(prediction, options.host, options.grpc_port, wanted, profiler))
    return doors


def grpc_options(options: DoorOptions) -> GrpcOptions:
    return GrpcOptions(
        options.grpc_socket,
        options.tls,
        options.grpc_channel_arguments,
        options.grpc_max_rpcs,
        has_port=options.grpc_port != 0,
    )
