"""The control plane of one model: plans it, places its actors, tells routers where they are.

Crash-only: all that it is told it is told when it is made. When its process dies, Ray ends its
shard actors and makes it anew, and the new one plans and places again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from shardserve.batching.errors import ResourceExhausted, Unavailable
from shardserve.cluster import fleet, progress
from shardserve.cluster.credentials import shard_credentials, stage_credentials
from shardserve.cluster.options import Application
from shardserve.cluster.placement import (
    ROUTER_CPUS,
    Bundle,
    Seat,
    bundles_for,
    seats,
    shortage_of,
)
from shardserve.cluster.planning import Wanted, plan_remotely
from shardserve.cluster.progress import Failure, Phase, Progress, failure_of
from shardserve.cluster.published import Published
from shardserve.cluster.shard_actor import ShardSpec
from shardserve.cluster.shard_measures import labelled, routed
from shardserve.cluster.stage_actor import StageSpec
from shardserve.cluster.stage_placement import (
    AnySeat,
    StageSeat,
    stage_bundles,
    stage_seats,
    stage_shortage,
)
from shardserve.cluster.stream_actor import ActorProcess
from shardserve.cluster.table import RoutingTable, changes, empty_table, lost, registered
from shardserve.shards.address import Address
from shardserve.shards.measures import Measure
from shardserve.shards.model import ModelPlan

logger = logging.getLogger(__name__)

_LONG_POLL_SECONDS = 30.0
#: What shards may take to answer what has come in, when all is to end.
_STOP_SECONDS = 8.0
#: A shard's process may start this often before the model was ready once; then starting failed.
MAX_STARTS = 3


@dataclass(frozen=True)
class Run:
    """One run of the server.

    Where the cluster `can_grow`, room for shards is waited for. Without an `application` there are
    shards only, and routers are somebody else's.
    """

    name: str
    wanted: Wanted
    can_grow: bool
    application: Application | None = None


class Controller:
    """An asyncio Ray actor, named `Run.name`. It begins when it is made."""

    def __init__(self, run: Run, secret: bytes) -> None:
        self._run = run
        self._secret = secret
        self._progress = Published(Progress(0))
        self._tables: asyncio.Future[Published[RoutingTable]] = asyncio.Future()
        self._starts: dict[AnySeat, int] = {}
        self._actors: dict[AnySeat, Any] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._bringing_up = [
            asyncio.ensure_future(self._bring_up_shards()),
            asyncio.ensure_future(self._bring_up_routers()),
        ]

    async def secret(self) -> bytes:
        """The cluster's secret, for routers."""
        return self._secret

    async def plan(self) -> ModelPlan:
        """The plan, once it is made. Raises the `ServingError` for which there is none."""
        return (await self._planned()).latest.plan

    async def pid(self) -> int:
        """The controller's own process."""
        return os.getpid()

    async def process_of(self, seat: AnySeat) -> ActorProcess:
        """The process of a seat that has registered."""
        process: ActorProcess = await self._actors[seat].process.remote()
        return process

    async def measures(self) -> list[Measure]:
        """What all shards tell of themselves, by model, shard and replica, and who is routed to.

        Those that do not answer at once, as while they start, are left out.
        """
        table = (await self._planned()).latest
        told = await fleet.measures(dict(self._actors))
        return [
            *labelled(table.model, table.version, told),
            *routed(table.model, table.version, table.by_seat()),
        ]

    async def wait_for_table(self, known: int) -> RoutingTable:
        """The table, as soon as its number is not `known`, or after a while as it is."""
        return await (await self._planned()).wait(known, _LONG_POLL_SECONDS)

    async def wait_for_progress(self, known: int) -> Progress:
        """As `wait_for_table`, how far the start has come."""
        return await self._progress.wait(known, _LONG_POLL_SECONDS)

    async def begins(self, seat: AnySeat) -> ShardSpec | StageSpec:
        """A process for a seat has started; what it has to be."""
        self._starts[seat] = self._starts.get(seat, 0) + 1
        if self._starts[seat] > MAX_STARTS and self._progress.latest.phase is not Phase.READY:
            died = f"{seat}: its process died {MAX_STARTS} times while loading; is memory short?"
            self._fail(Failure(Unavailable.code, died))
        plan = await self.plan()
        if isinstance(seat, StageSeat):
            group = plan.stage_group(seat.group)
            credentials = stage_credentials(self._secret, group)
            return StageSpec(self._run.name, seat, plan, credentials, self._secret)
        return ShardSpec(
            self._run.name,
            seat,
            plan.slices_of_shard(seat.shard),
            plan.sources,
            shard_credentials(self._secret, plan, seat.shard),
            plan.layout.cache_of_shard(seat.shard),
        )

    async def report(self, seat: AnySeat, nbytes: int) -> None:
        """A seat has so many bytes of what it loads in memory."""
        self._progress.publish(progress.loaded(self._progress.latest, seat, nbytes))

    async def verified(self, nbytes: int, total: int) -> None:
        """So many bytes more of the checkpoint, of `total`, have the right checksum."""
        self._progress.publish(progress.verified(self._progress.latest, nbytes, total))

    async def refused(self, seat: AnySeat, failure: Failure) -> None:
        """A seat could not load its part. It tries again; before the model was ready, in vain."""
        logger.error("%s cannot load: %s", seat, failure.message)
        if self._progress.latest.phase is not Phase.READY:
            self._fail(failure)

    async def ended(self, seat: AnySeat, failure: Failure) -> None:
        """A seat's process ends itself, for a reason that a new one may not have."""
        logger.error("%s ends: %s", seat, failure.message)

    async def router_refused(self, failure: Failure) -> None:
        """A router could not load the model."""
        logger.error("a router cannot start: %s", failure.message)
        self._fail(failure)

    async def register(self, seat: AnySeat, address: Address) -> None:
        """A seat serves at `address`. May be repeated."""
        tables = await self._planned()
        await self.report(seat, progress.totals_of(tables.latest.plan)[seat])
        self._publish(tables, registered(tables.latest, seat, address))
        if address.instance not in self._watches:
            watch = asyncio.ensure_future(self._watch(tables, seat, address.instance))
            self._watches[address.instance] = watch

    async def end(self) -> None:
        """End routers and actors, which answer what has come in, and give back their room."""
        if self._run.application is not None:
            await asyncio.to_thread(_withdraw, self._run.application)
        stopping = [actor.stop.remote() for actor in self._actors.values()]
        # One that cannot load its slices keeps restarting, and never answers.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await asyncio.gather(*stopping, return_exceptions=True)
        await asyncio.to_thread(fleet.release, self._run.name)

    async def _planned(self) -> Published[RoutingTable]:
        return await asyncio.shield(self._tables)

    async def _watch(self, tables: Published[RoutingTable], seat: AnySeat, instance: str) -> None:
        actor = self._actors[seat]
        while await fleet.lives(actor, instance):
            with contextlib.suppress(RayError):
                await actor.until_gone.remote(instance)
        del self._watches[instance]
        self._publish(tables, lost(tables.latest, seat, instance))

    def _publish(self, tables: Published[RoutingTable], table: RoutingTable) -> None:
        for line in changes(tables.latest, table):
            logger.info("table %d: %s", table.number, line)
        tables.publish(table)
        if table.is_complete and self._progress.latest.phase is Phase.LOADING:
            self._progress.publish(progress.ready(self._progress.latest))

    def _fail(self, failure: Failure) -> None:
        self._progress.publish(progress.failed(self._progress.latest, failure))

    async def _bring_up_routers(self) -> None:
        try:
            if self._run.application is not None:
                await asyncio.to_thread(_deploy, self._run.application)
        except Exception as error:  # noqa: BLE001 (whoever waits for the start gets it)
            self._fail(failure_of(error))
        else:
            self._progress.publish(progress.routed(self._progress.latest))

    async def _bring_up_shards(self) -> None:
        try:
            plan = await self._make_plan()
            tables = Published(empty_table(plan, number=time.time_ns() // 1_000_000))
            self._tables.set_result(tables)
            await self._place(plan)
            self._publish(tables, tables.latest)
        except Exception as error:  # noqa: BLE001 (whoever waits for the plan or the start gets it)
            self._fail(failure_of(error))
            if not self._tables.done():
                self._tables.set_exception(error)

    async def _make_plan(self) -> ModelPlan:
        planned: ModelPlan | Failure = await plan_remotely.remote(self._run.wanted, self._run.name)
        if isinstance(planned, Failure):
            raise planned.error()
        return planned

    async def _place(self, plan: ModelPlan) -> None:
        places, stages = seats(plan.layout), stage_seats(plan.stage_groups)
        if places or stages:
            shards = _shard_bundles(plan, places)
            await self._check_room(plan, shards)
            bundles = (*shards, *stage_bundles(plan.stage_groups))
            group = await asyncio.to_thread(fleet.reserve, self._run.name, bundles)
            self._actors = await fleet.place(group, places, stages, bundles, self._run.name)
        self._progress.publish(progress.loading(self._progress.latest))

    async def _check_room(self, plan: ModelPlan, shards: Sequence[Bundle]) -> None:
        nodes = await asyncio.to_thread(fleet.node_resources)
        application = self._run.application
        routers = application.ray.routers if application is not None else 0
        others = (*shards, Bundle(ROUTER_CPUS * routers, 0))
        lacking = shortage_of(shards, nodes) or stage_shortage(plan.stage_groups, others, nodes)
        if lacking is not None and not self._run.can_grow:
            raise ResourceExhausted(lacking)
        self._progress.publish(progress.placing(self._progress.latest, plan, lacking or ""))


def _shard_bundles(plan: ModelPlan, places: Sequence[Seat]) -> tuple[Bundle, ...]:
    if not places:
        return ()
    shards = range(plan.layout.shards)
    return bundles_for(
        places,
        [plan.memory_of_shard(shard) for shard in shards],
        [plan.layout.gpus_of_shard(shard) for shard in shards],
    )


def _deploy(application: Application) -> None:
    from shardserve.cluster import serve_app  # noqa: PLC0415 (slow to import; the plan goes first)

    serve_app.deploy(application)


def _withdraw(application: Application) -> None:
    from shardserve.cluster import serve_app  # noqa: PLC0415

    serve_app.withdraw(application)
