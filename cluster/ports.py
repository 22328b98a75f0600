"""Looks at ports before long work starts, so that a taken one is said at once and by name."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Mapping

from shardserve.batching.errors import FailedPrecondition

_RANGE = range(12_000, 29_000)


def check_free(host: str, ports: Mapping[str, int]) -> None:
    """Raise FailedPrecondition, naming the flag, for a port that somebody listens on.

    `ports` has ports by flag; 0 is skipped. The doors share their ports among the routers of a
    node, so without this they would share them with another server of the same user, too.
    """
    for flag, port in ports.items():
        if port:
            _check(host, flag, port)


def _check(host: str, flag: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Without this, connections that a server before us closed would keep the port for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise FailedPrecondition(
                f"{flag}={port}: cannot listen on {host}:{port}: {error}"
            ) from error


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on, on any interface, at the moment.

    None is one that the system gives to outgoing connections, or that Ray Serve counts up from.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise FailedPrecondition(f"fewer than {count} ports in {_RANGE} are free")
