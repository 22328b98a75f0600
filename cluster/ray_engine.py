"""The Ray engine: starts or joins a Ray, serves models on it, and ends all that it started."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from rich.console import Console

from shardserve.cluster import environment
from shardserve.cluster.console import announce, start_display
from shardserve.cluster.environment import IngressPorts
from shardserve.cluster.options import ServeOptions
from shardserve.cluster.ports import free_ports
from shardserve.cluster.private_directory import remove_sockets
from shardserve.cluster.processes import adopt_orphans, end_descendants
from shardserve.cluster.start_checks import check_addresses, check_start, example_of, served_of
from shardserve.cluster.stop_signals import Stopped, StopSignals
from shardserve.router import logs

_GRACE_SECONDS = 3.0


def serve(options: ServeOptions, console: Console) -> None:
    """Serve what is configured until a signal asks to stop.

    Raises a `ServingError` when it cannot be served. Either way, nothing that was started is left.
    """
    logs.configure()
    check_start(options)
    _prepare(options)
    from shardserve.cluster.ray_run import RayRun  # noqa: PLC0415 (the environment comes first)

    name = f"shardserve-{secrets.token_hex(4)}"
    run = RayRun(name, options, StopSignals())
    try:
        with start_display(console, options.engine) as display:
            table = run.start(display)
        served = served_of(table.models)
        announce(console, options, served, example_of(options, served))
        run.stay(table)
    except Stopped:
        console.print("stopping")
    finally:
        run.end()
        end_descendants(_GRACE_SECONDS)
        remove_sockets(name)
        _remove_door(options)


def _remove_door(options: ServeOptions) -> None:
    """The socket of a router that was ended by Ray, which asks it nothing before."""
    if options.ray.address is None and options.doors.grpc_socket:
        Path(options.doors.grpc_socket).unlink(missing_ok=True)


def _prepare(options: ServeOptions) -> None:
    if options.ray.address is not None:
        environment.apply(environment.join_settings(), os.environ)
        return
    check_addresses(options)
    environment.apply(environment.local_settings(IngressPorts(*free_ports(4))), os.environ)
    adopt_orphans()
