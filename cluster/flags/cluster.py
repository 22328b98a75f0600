"""Flags that say where all of it runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, ClassVar

from shardserve.cluster.flags.group import flag
from shardserve.cluster.options import Engine, RayOptions

#: Who gives one of these wants processes of their own.
_OF_A_CLUSTER = frozenset(
    {
        "shards",
        "replicas",
        "layout",
        "memory_per_shard",
        "model_options_file",
        "address",
        "routers",
        "serve_http_port",
        "serve_grpc_port",
    }
)


@dataclass(frozen=True)
class ClusterFlags:
    PANEL: ClassVar[str] = "Cluster"

    engine: Annotated[
        Engine | None,
        flag(
            "ray, or all in one process without Ray.",
            show_default="ray; tensorflow_model_server: local, unless shards are asked for",
        ),
    ] = None
    address: Annotated[
        str | None, flag("A Ray cluster to join; one is started if unset.", show_default=False)
    ] = None
    routers: Annotated[int, flag("Replicas of the router.")] = 1
    serve_http_port: Annotated[
        int, flag("Ray Serve's HTTP ingress; 0: no ingress, which is so with --ssl_config_file.")
    ] = 8000
    serve_grpc_port: Annotated[int, flag("Ray Serve's gRPC ingress.")] = 9000


def engine_of(flags: ClusterFlags, given: Collection[str], alone: Engine) -> Engine:
    """The one asked for; else Ray, if another flag asks for it, and `alone` if none does."""
    if flags.engine is not None:
        return flags.engine
    return alone if _OF_A_CLUSTER.isdisjoint(given) else Engine.RAY


def ray_of(flags: ClusterFlags, given: Collection[str], *, is_secure: bool) -> RayOptions:
    """Ray Serve's ingress has no TLS: who asks for it gets no other door, unless by its port."""
    http = 0 if is_secure and "serve_http_port" not in given else flags.serve_http_port
    return RayOptions(flags.address, flags.routers, http, flags.serve_grpc_port)


def warnings_of_cluster(ray: RayOptions, engine: Engine, *, is_secure: bool) -> list[str]:
    """What is not as secure as the doors are."""
    if is_secure and engine is Engine.RAY and ray.has_ingress:
        return ["--serve_http_port: Ray Serve's ingress, HTTP and gRPC, is not encrypted"]
    return []
