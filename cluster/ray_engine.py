"""The Ray engine: starts or joins a Ray, serves models on it, and ends all that it started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from shardserve.cluster import environment
from shardserve.cluster.console import announce, say, start_display
from shardserve.cluster.environment import IngressPorts
from shardserve.cluster.options import ServeOptions
from shardserve.cluster.ports import free_ports
from shardserve.cluster.private_directory import remove_sockets
from shardserve.cluster.processes import adopt_orphans, end_descendants
from shardserve.cluster.run import new_name
from shardserve.cluster.start_checks import check_addresses, check_start, example_of, served_of
from shardserve.cluster.stop_signals import Stopped, StopSignals, ending_of
from shardserve.router import logs

if TYPE_CHECKING:
    from shardserve.cluster.ray_run import RayRun

_GRACE_SECONDS = 3.0


def serve(options: ServeOptions, console: Console) -> int:
    """Serve what is configured until a signal asks to stop.

    The exit status is that of `ending_of`. Raises a `ServingError` when it cannot be served. In any
    case nothing that was started is left.
    """
    logs.configure()
    check_start(options)
    _prepare(options)
    from shardserve.cluster.ray_run import RayRun  # noqa: PLC0415 (the environment comes first)

    name = new_name()
    run = RayRun(name, options, StopSignals())
    try:
        status = _serve(run, options, console)
    finally:
        run.end()
        end_descendants(_GRACE_SECONDS)
        remove_sockets(name)
        _remove_door(options)
    say(console, "stopped")
    return status


def _serve(run: RayRun, options: ServeOptions, console: Console) -> int:
    is_served = False
    try:
        with start_display(console, options.engine) as display:
            table = run.start(display)
        served = served_of(table.models)
        announce(console, options, served, example_of(options, served), run.ingress)
        is_served = True
        run.stay(table)
    except Stopped as stopped:
        say(console, "stopping")
        ending = ending_of(stopped.number, options.doors.drain_seconds, is_served=is_served)
        run.drain(ending.drain_seconds)
        return ending.status


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
