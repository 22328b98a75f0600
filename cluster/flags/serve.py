"""All flags of the server, and the options that they come to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from shardserve.cluster.flags.batching import BatchingFlags
from shardserve.cluster.flags.cluster import ClusterFlags, engine_of, ray_of, warnings_of_cluster
from shardserve.cluster.flags.doors import DoorFlags, doors_of, warnings_of_doors
from shardserve.cluster.flags.group import flag
from shardserve.cluster.flags.loading import LoadingFlags, manager_options_of
from shardserve.cluster.flags.models import (
    ModelFlags,
    models_of,
    trusted_types_of,
    warnings_of_models,
)
from shardserve.cluster.flags.runtime import RuntimeFlags, runtime_of
from shardserve.cluster.flags.sharding import ShardingFlags, plan_of
from shardserve.cluster.flags.unused import UnusedFlags, refuse_unused, warnings_of_unused
from shardserve.cluster.front import Front
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.options import ServeOptions, check

VERSION_HELP = "Say which version this is, and end."


@dataclass(frozen=True)
class OtherFlags:
    PANEL: ClassVar[str] = "Other"

    version: Annotated[bool, flag(VERSION_HELP)] = False
    print_example: Annotated[
        Path | None,
        flag("A REST request to show; assets.extra/predict_request.json if unset.", metavar="FILE"),
    ] = None


@dataclass(frozen=True)
class ServeFlags:
    models: ModelFlags
    doors: DoorFlags
    loading: LoadingFlags
    batching: BatchingFlags
    runtime: RuntimeFlags
    sharding: ShardingFlags
    cluster: ClusterFlags
    other: OtherFlags
    unused: UnusedFlags


def options_of(
    flags: ServeFlags, given: Collection[str], front: Front
) -> tuple[ServeOptions, list[str]]:
    """The options, checked, and what is to be said about flags that are not heeded.

    `given` are the flags that the user has set. Raises a `ServingError` that names the flag, or the
    file and its place in it.
    """
    refuse_unused(flags.unused)
    runtime = runtime_of(flags.runtime, flags.batching, given)
    plan = plan_of(
        flags.sharding,
        runtime.batching,
        runtime.tags,
        given,
        allow_pickle=flags.models.allow_pickle,
        trusted_types=trusted_types_of(flags.models),
    )
    defaults = ModelOptions(plan)
    doors = doors_of(flags.doors, runtime.sessions, front.host)
    is_secure = doors.tls is not None
    ray = ray_of(flags.cluster, given, is_secure=is_secure)
    options = ServeOptions(
        models=models_of(flags.models, defaults, waits=front.waits_for_models),
        defaults=defaults,
        manager=manager_options_of(flags.loading),
        doors=doors,
        engine=engine_of(flags.cluster, given, front.engine),
        ray=ray,
        warm_up=runtime.warm_up,
        example=flags.other.print_example,
        opened=front.opened(doors),
    )
    check(options)
    return options, [
        *warnings_of_models(flags.models, given),
        *warnings_of_doors(flags.doors, given),
        *runtime.warnings,
        *warnings_of_cluster(ray, options.engine, is_secure=is_secure),
        *warnings_of_unused(flags.unused, given),
    ]
