"""The shard and stage actors of one version, in one placement group. Ray's calls, no decisions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shardserve.cluster.placement import Bundle, Seat, assign_alike
from shardserve.cluster.shard_actor import ShardActor
from shardserve.cluster.stage_actor import StageActor
from shardserve.cluster.stage_placement import AnySeat, StageSeat
from shardserve.cluster.stream_actor import Post
from shardserve.shards.measures import Measure

logger = logging.getLogger(__name__)

#: How often an actor is asked whether it is alive, and what it may take to answer anything.
_ATTEMPTS = 3
_ANSWER_SECONDS = 1.0

_ShardActor = ray.remote(ShardActor)
_StageActor = ray.remote(StageActor)


@dataclass(frozen=True)
class Placed:
    """The actors' handles by seat, and on which node each bundle lies."""

    actors: Mapping[AnySeat, Any]
    nodes: tuple[str, ...]


def node_resources() -> dict[str, dict[str, float]]:
    """What each live node has in all, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def reserve(name: str, bundles: Sequence[Bundle]) -> PlacementGroup:
    """A placement group of bundles, spread over the nodes as far as there are nodes.

    One of the same name that an earlier life of the controller left behind is removed.
    """
    release(name)
    resources = [bundle.resources() for bundle in bundles]
    return placement_group(resources, strategy="SPREAD", name=name)


def release(name: str) -> None:
    """Give back the room of a placement group, if there is one of that name."""
    with contextlib.suppress(ValueError):
        remove_placement_group(get_placement_group(name))


def release_all(run: str) -> None:
    """Give back the room of every placement group of a run."""
    groups = placement_group_table().values()
    names = {group["name"] for group in groups if group["state"] != "REMOVED"}
    for name in names:
        if name.startswith(f"{run}/"):
            release(name)


async def place(
    group: PlacementGroup,
    places: Sequence[Seat],
    stages: Sequence[StageSeat],
    bundles: Sequence[Bundle],
    post: Post,
) -> Placed:
    """Wait for the group's room, and start an actor in it for each seat.

    The group's bundles are those that the shards' seats need, then the stages', in their order.
    """
    await group.ready()
    table = await asyncio.to_thread(placement_group_table, group)
    nodes = table["bundles_to_node_id"]
    count = len(places)
    chosen = assign_alike(places, bundles[:count], [nodes[index] for index in range(count)])
    others = zip(stages, range(count, len(bundles)), strict=True)
    every: list[tuple[AnySeat, int]] = [*chosen.items(), *others]
    actors = {seat: _start(group, index, seat, post) for seat, index in every}
    return Placed(actors, tuple(nodes[index] for index in range(len(bundles))))


async def measures(actors: Mapping[AnySeat, Any]) -> dict[AnySeat, list[Measure]]:
    """What each actor tells of itself; nothing of one that does not answer at once."""
    told = await asyncio.gather(*map(_told, actors.values()))
    return dict(zip(actors, told, strict=True))


async def lives(actor: Any, instance: str) -> bool:
    """Whether the actor's process is the one that registered as `instance`.

    Calls made soon after an actor came back still fail for its predecessor's death, hence some
    attempts.
    """
    for _ in range(_ATTEMPTS):
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                serves: bool = await actor.serves_as.remote(instance)
                return serves
        except (RayError, TimeoutError) as error:
            logger.info("an actor does not answer: %s", error)
    return False


async def _told(actor: Any) -> list[Measure]:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            found: list[Measure] = await actor.measures.remote()
            return found
    except (RayError, TimeoutError) as error:
        logger.info("an actor tells nothing of itself: %s", error)
        return []


def _start(group: PlacementGroup, bundle: int, seat: AnySeat, post: Post) -> Any:
    reserved = group.bundle_specs[bundle]
    actor = _StageActor if isinstance(seat, StageSeat) else _ShardActor
    return actor.options(
        num_cpus=reserved.get("CPU", 0),
        num_gpus=reserved.get("GPU", 0),
        memory=reserved["memory"],
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle),
        max_restarts=-1,
        max_concurrency=4,
    ).remote(seat, post)
