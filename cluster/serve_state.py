"""What the Serve of this Ray is like, and whether a run of ours has started it. The calls block."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ray
from ray.serve.config import ProxyLocation
from ray.serve.schema import ServeInstanceDetails

from shardserve.batching.errors import Unavailable
from shardserve.cluster.ingress import ADDERS
from shardserve.cluster.kept import Kept
from shardserve.cluster.serve_ingress import ServeIngress

#: All runs share it: whoever is the last to end, ends a Serve that was started by any of them.
_NOTES = Kept("serve")
_STARTED = "started"


def controller() -> Any | None:
    """The actor that Serve is controlled by; None while no Serve runs in this Ray."""
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None


def note_started() -> None:
    """The Serve that runs now is ours."""
    _NOTES.put(_STARTED, _id(details()))


def note_ended() -> None:
    """The Serve that was ours is no more."""
    _NOTES.forget_all()


def is_ours() -> bool:
    """Whether a run of ours has started the Serve that runs now."""
    return controller() is not None and _NOTES.get(_STARTED) == _id(details())


def details() -> ServeInstanceDetails:
    """What the Serve that runs says of itself. Raises Unavailable where none runs."""
    running = controller()
    if running is None:
        raise Unavailable("Serve does not run in this Ray any more")
    return ServeInstanceDetails(**ray.get(running.get_serve_instance_details.remote()))


def ingress_of(serve: ServeInstanceDetails) -> ServeIngress:
    """Where Serve listens for routers. gRPC counts if it takes all of their services."""
    http, grpc = serve.http_options, serve.grpc_options
    if http is None or serve.proxy_location is ProxyLocation.Disabled:
        return ServeIngress()
    is_taken = grpc is not None and set(ADDERS) <= set(grpc.grpc_servicer_functions)
    return ServeIngress(http.host, http.port, grpc.port if is_taken else 0)


def may_end(applications: Collection[str], *, we_started: bool) -> bool:
    """Whether Serve may be ended in a Ray that is not ours: nobody uses it, and it was ours."""
    return we_started and not applications


def _id(serve: ServeInstanceDetails) -> bytes:
    return str(serve.controller_info.actor_id).encode()
