"""The cluster as a run's deployments find it: finds room for one after the other, and places it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

from shardserve.batching.errors import ResourceExhausted
from shardserve.cluster import fleet
from shardserve.cluster.fleet import Placed
from shardserve.cluster.placement import (
    ROUTER_CPUS,
    Bundle,
    Seat,
    bundles_for,
    left_over,
    seats,
    shortage_of,
)
from shardserve.cluster.planning import Planner
from shardserve.cluster.sessions import Sessions
from shardserve.cluster.stage_placement import stage_bundles, stage_seats, stage_shortage
from shardserve.cluster.stream_actor import Post
from shardserve.cluster.uncancelled import on_thread
from shardserve.cluster.waiting import noted_after
from shardserve.shards.model import ModelPlan

#: After which a person is told what is waited for.
_PATIENCE_SECONDS = 5.0
_NOT_ITS_TURN = "waiting for other versions to be placed"
_NOT_GIVEN = "Ray has not given the room that should be free; others may have it"

#: Of a version that needs no actors.
NOTHING = Placed({}, ())


class Site:
    """What is the same for all deployments of a run. Belongs to one event loop.

    `run` is the name of its controller, too. Where the cluster `can_grow`, room is waited for;
    elsewhere a deployment has to fit beside what others, and `routers`, have.
    """

    def __init__(
        self,
        run: str,
        secret: bytes,
        *,
        can_grow: bool,
        routers: int,
        sessions: Sessions = Sessions(),  # noqa: B008 (frozen)
    ) -> None:
        self.run = run
        self.secret = secret
        self.sessions = sessions
        self.planner = Planner()
        self._can_grow = can_grow
        self._routers = routers
        self._taken: dict[str, tuple[tuple[str, Bundle], ...]] = {}
        # Where room is counted no two may count on the same.
        self._one_by_one: AbstractAsyncContextManager[object] = (
            nullcontext() if can_grow else asyncio.Lock()
        )

    async def place(self, plan: ModelPlan, post: Post, waits_for: Callable[[str], None]) -> Placed:
        """Start an actor for each seat of a plan, when there is room for all.

        `waits_for` is told what is lacking meanwhile, "" if nothing is. Raises ResourceExhausted
        where nothing comes of waiting. Whoever calls it calls `release`, too.
        """
        places, stages = seats(plan.layout), stage_seats(plan.stage_groups)
        if not places and not stages:
            waits_for("")
            return NOTHING
        shards = _shard_bundles(plan, places)
        bundles = (*shards, *stage_bundles(plan.stage_groups))
        name = self._group_of(plan.name, plan.version)
        with noted_after(_PATIENCE_SECONDS, partial(waits_for, _NOT_ITS_TURN)) as note:
            async with self._one_by_one:
                note.cancel()
                lacking = await self._lacking(plan, shards)
                waits_for(lacking)
                # Or `release` would find no group, and the thread make one afterwards.
                group = await on_thread(partial(fleet.reserve, name, bundles))
                with noted_after(_PATIENCE_SECONDS, partial(waits_for, lacking or _NOT_GIVEN)):
                    placed = await fleet.place(group, places, stages, bundles, post)
                self._taken[name] = tuple(zip(placed.nodes, bundles, strict=True))
        return placed

    async def release(self, model: str, version: int) -> None:
        """End the actors of a version, and give back their room."""
        name = self._group_of(model, version)
        await asyncio.to_thread(fleet.release, name)
        self._taken.pop(name, None)

    def _group_of(self, model: str, version: int) -> str:
        """The name of a version's placement group."""
        return f"{self.run}/{model}/{version}"

    async def _lacking(self, plan: ModelPlan, shards: Sequence[Bundle]) -> str:
        nodes = await asyncio.to_thread(self._nodes)
        others = (*shards, Bundle(ROUTER_CPUS * self._routers, 0))
        lacking = shortage_of(shards, nodes) or stage_shortage(plan.stage_groups, others, nodes)
        if lacking is not None and not self._can_grow:
            raise ResourceExhausted(lacking)
        return lacking or ""

    def _nodes(self) -> Sequence[Mapping[str, float]]:
        every = fleet.node_resources()
        if self._can_grow:
            return list(every.values())
        return left_over(every, [one for taken in list(self._taken.values()) for one in taken])


def _shard_bundles(plan: ModelPlan, places: Sequence[Seat]) -> tuple[Bundle, ...]:
    if not places:
        return ()
    shards = range(plan.layout.shards)
    return bundles_for(
        places,
        [plan.memory_of_shard(shard) for shard in shards],
        [plan.layout.gpus_of_shard(shard) for shard in shards],
    )
