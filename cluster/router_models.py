"""The models of one router: loads, follows and drops them as the controller's tables say.

Decisions are `router_steps`'; this carries them out. Belongs to the running event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from shardserve.cluster.catalog_table import CatalogTable, ModelEntry, Serving, catalog_of
from shardserve.cluster.leases import RouterReport
from shardserve.cluster.progress import Failure, failure_of
from shardserve.cluster.router_steps import Drop, Follow, Has, Held, TakeUp, shown_after, steps
from shardserve.cluster.versions import VersionId
from shardserve.router.catalog import Catalog
from shardserve.router.servable import Servable

logger = logging.getLogger(__name__)


class RouterVersion(Protocol):
    """One version in a router's process, from when it is to be loaded until it is closed."""

    servable: Servable

    async def load(self) -> None:
        """Return when `servable` is there, warm, and its actors can be asked.

        On other threads than those that serve. Raises a `ServingError`.
        """
        ...

    def follow(self, serving: Serving) -> None:
        """Its actors are these now."""
        ...

    async def connected(self) -> None:
        """Return when its actors can be asked."""
        ...

    async def close(self) -> None:
        """Free all of it, however far it came. No request asks it any more."""
        ...


@dataclass
class _Version:
    """`task` is under way for `part`; `before` serves until `part` does."""

    held: Held
    part: RouterVersion
    task: asyncio.Task[None] | None = None
    before: RouterVersion | None = None

    @property
    def servable(self) -> Servable | None:
        if self.before is not None:
            return self.before.servable
        return getattr(self.part, "servable", None)


class RouterModels:
    """What a router serves, and what it says of that. `changed` is called when that is different.

    Requests are answered from `catalog`. `make` begins with a version; it does not block.
    """

    def __init__(
        self,
        catalog: Catalog,
        make: Callable[[VersionId, Serving], RouterVersion],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._catalog = catalog
        self._make = make
        self._changed = changed
        self._table = CatalogTable(-1)
        self._shown: Mapping[str, ModelEntry] = {}
        self._versions: dict[VersionId, _Version] = {}
        self._offered: set[VersionId] = set()
        self._refused: dict[str, Failure] = {}
        self._dropping: list[VersionId] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._reports = 0

    @property
    def table(self) -> CatalogTable:
        """The latest table."""
        return self._table

    @property
    def is_ready(self) -> bool:
        """Whether all that is to answer requests does."""
        active = {v for v, serving in self._table.servings().items() if serving.is_active}
        return active <= self._offered

    @property
    def refusal(self) -> Failure | None:
        """Why a version that is to answer requests cannot be loaded here, if one cannot."""
        active = {s.deployment for s in self._table.servings().values() if s.is_active}
        return next((why for one, why in self._refused.items() if one in active), None)

    def report(self) -> RouterReport:
        """See `RouterReport`."""
        self._reports += 1
        loaded = {
            version: one.held.deployment
            for version, one in self._versions.items()
            if one.held.has is Has.LOADED
        }
        held = frozenset((*self._versions, *self._dropping))
        refused = dict(self._refused)
        return RouterReport(self._reports, self._table.number, loaded, refused, held)

    def apply(self, table: CatalogTable) -> None:
        """Serve what `table` says from now on; requests under way are not disturbed."""
        self._table = table
        self._shown = shown_after(self._shown, table)
        held = {version: one.held for version, one in self._versions.items()}
        dropped = []
        for step in steps(table, held, self._offered):
            match step:
                case TakeUp(version, serving):
                    self._load(version, serving)
                case Follow(version, serving):
                    self._follow(version, serving)
                case Drop(version):
                    dropped.append(version)
        self._offered -= set(dropped)
        self._publish()
        for version in dropped:
            self._retire(version, self._versions.pop(version))
        deployments = {serving.deployment for serving in table.servings().values()}
        self._refused = {one: why for one, why in self._refused.items() if one in deployments}
        self._changed()

    async def close(self) -> None:
        """Drop everything, and return when it is free."""
        self.apply(CatalogTable(self._table.number))
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _load(self, version: VersionId, serving: Serving) -> None:
        held = Held(serving.deployment, serving.fingerprint, Has.LOADING)
        one = _Version(held, self._make(version, serving))
        old = self._versions.get(version)
        if old is not None:
            one.before = self._successor_of(version, old)
        self._versions[version] = one
        one.task = self._begin(self._loading(version, one))

    def _successor_of(self, version: VersionId, old: _Version) -> RouterVersion | None:
        """Of what there was, the part that serves on; the other is freed."""
        if version not in self._offered:
            self._retire(version, old)
            return None
        if old.before is None:
            if old.task is not None:
                old.task.cancel()  # It connects to actors that nobody asks any more.
            return old.part
        self._retire(version, replace(old, before=None))
        return old.before

    def _follow(self, version: VersionId, serving: Serving) -> None:
        one = self._versions[version]
        one.part.follow(serving)
        if one.held.deployment == serving.deployment:
            return
        was = one.held.has
        one.held = replace(one.held, deployment=serving.deployment, has=Has.LOADING)
        if was is Has.LOADED:
            one.task = self._begin(self._connecting(one))

    def _retire(self, version: VersionId, one: _Version) -> None:
        self._dropping.append(version)
        self._begin(self._free(version, one))

    async def _loading(self, version: VersionId, one: _Version) -> None:
        try:
            await one.part.load()
        except Exception as error:
            logger.exception("%s cannot be loaded", version)
            self._refused[one.held.deployment] = failure_of(error)
            one.held = replace(one.held, has=Has.REFUSED)
            self._changed()
            return
        before, one.before = one.before, None
        try:
            await self._connecting(one)
        finally:
            if before is not None:
                self._retire(version, _Version(one.held, before))

    async def _connecting(self, one: _Version) -> None:
        deployment = None
        while deployment != one.held.deployment:
            deployment = one.held.deployment
            await one.part.connected()
        one.held = replace(one.held, has=Has.LOADED)
        self._publish()
        self._changed()

    async def _free(self, version: VersionId, one: _Version) -> None:
        try:
            if one.task is not None:
                one.task.cancel()
                await asyncio.wait([one.task])
            await self._catalog.quiesce()
            for part in (one.part, one.before):
                if part is not None:
                    await part.close()
        finally:
            self._dropping.remove(version)
            self._changed()

    def _publish(self) -> None:
        for version, serving in self._table.servings().items():
            if serving.is_active and self._versions[version].held.has is Has.LOADED:
                self._offered.add(version)
        servables = {version: self._versions[version].servable for version in self._offered}
        found = {version: one for version, one in servables.items() if one is not None}
        self._catalog.replace(catalog_of(self._shown, found))

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
