"""One version of one model on the cluster: its plan, its actors, and where they listen."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray.exceptions import RayError

from shardserve.batching.errors import Unavailable
from shardserve.cluster import fleet, progress
from shardserve.cluster.base_paths import digest_of
from shardserve.cluster.catalog_table import Serving
from shardserve.cluster.configured import Wanted
from shardserve.cluster.credentials import shard_credentials, stage_credentials
from shardserve.cluster.progress import Failure, Progress
from shardserve.cluster.published import Published
from shardserve.cluster.sessions import sessions_of_stage
from shardserve.cluster.shard_actor import ShardSpec
from shardserve.cluster.shard_measures import labelled, routed
from shardserve.cluster.site import Site
from shardserve.cluster.stage_actor import StageSpec
from shardserve.cluster.stage_placement import AnySeat, StageSeat
from shardserve.cluster.stream_actor import ActorProcess, Post
from shardserve.cluster.table import RoutingTable, changes, empty_table, lost, registered
from shardserve.shards.address import Address
from shardserve.shards.measures import Measure
from shardserve.shards.model import ModelPlan

logger = logging.getLogger(__name__)

#: What actors may take to answer what has come in, when they are to end.
_STOP_SECONDS = 8.0
#: An actor's process may start this often before all were there once; then starting failed.
MAX_STARTS = 3


class Deployment:
    """Brought up once, and ended once.

    `changed` is called when its table has changed, `progressed` when its progress has.
    Belongs to the running event loop.
    """

    def __init__(
        self,
        site: Site,
        wanted: Wanted,
        changed: Callable[[], None],
        progressed: Callable[[], None] = lambda: None,
    ) -> None:
        #: Another one each time a version is deployed.
        self.token = secrets.token_hex(4)
        self.wanted = wanted
        self.progress = Progress()
        self._site = site
        self._changed = changed
        self._progressed = progressed
        self._post = Post(site.run, self.token)
        self._tables: asyncio.Future[Published[RoutingTable]] = asyncio.Future()
        self._plan: asyncio.Future[ModelPlan] = asyncio.Future()
        #: Done once every actor was there, with None, or why that cannot be.
        self._came_up: asyncio.Future[Failure | None] = asyncio.Future()
        self._fingerprint = ""
        self._is_offered = self._is_active = False
        self._starts: dict[AnySeat, int] = {}
        self._actors: Mapping[AnySeat, Any] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}

    @property
    def serving(self) -> Serving | None:
        """What routers are told: nothing before it is offered to them, and after that is over."""
        if not self._is_offered:
            return None
        routing = self._tables.result().latest
        return Serving(self.token, self._fingerprint, routing, self._is_active)

    async def bring_up(self) -> None:
        """Plan, place, and return when every actor serves.

        Raises the `ServingError` for which that cannot be. Whoever calls it calls `end`, too.
        """
        digest = await asyncio.to_thread(digest_of, self.wanted.directory)
        plan = await self._site.planner.plan(self.wanted, self._post)
        self._fingerprint = _fingerprint(plan, digest)
        self._plan.set_result(plan)
        # Routers may know tables of an earlier deployment: none has the numbers of this one.
        first = empty_table(plan, number=time.time_ns() // 1_000_000)
        self._tables.set_result(Published(first))
        placed = await self._site.place(plan, self._post, self._waits_for)
        self._actors = placed.actors
        self._note(progress.loading(self.progress))
        if not placed.actors:
            self._came_up.set_result(None)
        failure = await self._came_up
        if failure is not None:
            raise failure.error()
        self._note(progress.ready(self.progress))

    def offer(self) -> None:
        """Tell routers to load it."""
        self._is_offered = True
        self._changed()

    def activate(self) -> None:
        """Tell routers to send requests there."""
        self._is_active = True
        self._changed()

    def withdraw(self) -> None:
        """Tell routers to drop it."""
        self._is_offered = self._is_active = False
        self._changed()

    async def stop(self) -> None:
        """Let the actors answer what has come in, and serve no more."""
        stopping = [actor.stop.remote() for actor in self._actors.values()]
        # One that cannot load its slices keeps restarting, and never answers.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await asyncio.gather(*stopping, return_exceptions=True)

    async def end(self) -> None:
        """Stop the actors, end them, and give back their room."""
        await self.stop()
        for watch in self._watches.values():
            watch.cancel()
        await self._site.release(self.wanted.id.model, self.wanted.id.version)

    async def plan(self) -> ModelPlan:
        """The plan, once it is made."""
        return await asyncio.shield(self._plan)

    async def wait_for_routing(self, known: int, seconds: float) -> RoutingTable:
        """The table, once there is one, as soon as its number is not `known`, or after a while."""
        return await (await asyncio.shield(self._tables)).wait(known, seconds)

    async def process_of(self, seat: AnySeat) -> ActorProcess:
        """The process of a seat that has registered."""
        process: ActorProcess = await self._actors[seat].process.remote()
        return process

    async def measures(self) -> list[Measure]:
        """What each actor tells of itself, if it answers at once, and where requests can go."""
        name, version = self.wanted.id.model, self.wanted.id.version
        told = labelled(name, version, await fleet.measures(self._actors))
        if not self._tables.done():
            return told
        return [*told, *routed(name, version, self._tables.result().latest.by_seat())]

    async def begins(self, seat: AnySeat) -> ShardSpec | StageSpec:
        """A process for a seat has started; what it has to be."""
        self._starts[seat] = self._starts.get(seat, 0) + 1
        if self._starts[seat] > MAX_STARTS:
            died = f"{seat}: its process died {MAX_STARTS} times while loading; is memory short?"
            self._fail(Failure(Unavailable.code, died))
        plan = await self.plan()
        secret, sockets = self._site.secret, f"{self._site.run}-{self.token}"
        if isinstance(seat, StageSeat):
            group = plan.stage_group(seat.group)
            sessions = sessions_of_stage(self._site.sessions, group.num_cpus)
            credentials = stage_credentials(secret, group)
            return StageSpec(sockets, seat, plan, credentials, secret, sessions)
        return ShardSpec(
            sockets,
            seat,
            plan.slices_of_shard(seat.shard),
            plan.sources,
            shard_credentials(secret, plan, seat.shard),
            plan.layout.cache_of_shard(seat.shard),
        )

    def report(self, seat: AnySeat, nbytes: int) -> None:
        """A seat has so many bytes of what it loads in memory."""
        self._note(progress.loaded(self.progress, seat, nbytes))

    def verified(self, nbytes: int, total: int) -> None:
        """So many bytes more of the checkpoint, of `total`, have the right checksum."""
        self._note(progress.verified(self.progress, nbytes, total))

    def refused(self, seat: AnySeat, failure: Failure) -> None:
        """A seat could not load its part. It tries again; before all were there once, in vain."""
        logger.error("%s: %s cannot load: %s", self.wanted.id, seat, failure.message)
        self._fail(failure)

    def register(self, seat: AnySeat, address: Address) -> None:
        """A seat serves at `address`. May be repeated."""
        tables = self._tables.result()
        self.report(seat, self.progress.totals.get(seat, 0))
        self._publish(registered(tables.latest, seat, address))
        if address.instance not in self._watches:
            watch = asyncio.ensure_future(self._watch(seat, address.instance))
            self._watches[address.instance] = watch

    def _waits_for(self, lacking: str) -> None:
        self._note(progress.placing(self.progress, self._plan.result(), lacking))

    async def _watch(self, seat: AnySeat, instance: str) -> None:
        actor = self._actors[seat]
        while await fleet.lives(actor, instance):
            with contextlib.suppress(RayError):
                await actor.until_gone.remote(instance)
        del self._watches[instance]
        self._publish(lost(self._tables.result().latest, seat, instance))

    def _publish(self, table: RoutingTable) -> None:
        tables = self._tables.result()
        if table.number == tables.latest.number:
            return
        for line in changes(tables.latest, table):
            logger.info("%s: %s", self.wanted.id, line)
        tables.publish(table)
        if table.is_complete and not self._came_up.done():
            self._came_up.set_result(None)
        self._changed()

    def _fail(self, failure: Failure) -> None:
        if not self._came_up.done():
            self._came_up.set_result(failure)

    def _note(self, now: Progress) -> None:
        if now is not self.progress:
            self.progress = now
            self._progressed()


def _fingerprint(plan: ModelPlan, files: str) -> str:
    """Of all that a router has loaded when it has loaded the plan, from those files."""
    return hashlib.sha256(f"{plan!r}{files}".encode()).hexdigest()
