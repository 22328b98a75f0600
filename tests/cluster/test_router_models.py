"""What a router serves while tables come, controllers die, and loading takes its time or fails."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shardserve.batching.errors import Unavailable
from shardserve.cluster.catalog_table import CatalogTable, ModelEntry, Serving, VersionEntry
from shardserve.cluster.router_models import RouterModels
from shardserve.cluster.table import RoutingTable
from shardserve.cluster.versions import VersionId
from shardserve.router.catalog import Catalog, ModelSpec, State
from shardserve.router.servable import Servable

T = TypeVar("T")

VERSIONS = st.integers(1, 3)
NOBODY = RoutingTable(1, ())


class Part:
    """A version that loads when it is told to, one way or the other. Implements `RouterVersion`."""

    def __init__(self, version: VersionId, serving: Serving) -> None:
        self.version = version
        self.serving = serving
        self.outcome: asyncio.Future[None] = asyncio.Future()
        self.closed = 0

    async def load(self) -> None:
        await self.outcome
        self.servable = cast(Servable, self)

    def follow(self, serving: Serving) -> None:
        assert not self.closed
        assert serving.fingerprint == self.serving.fingerprint
        self.serving = serving

    async def connected(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        self.closed += 1


class Router(RuleBasedStateMachine):
    """A controller's decisions at random, and a router that follows them."""

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.parts: list[Part] = []
        self.catalog = Catalog()
        self.number = self.deployments = 0
        self.entries: dict[int, VersionEntry] = {}
        #: Versions that are to answer, those of an earlier controller's life among them.
        self.answering: set[int] = set()
        self.is_settled = True
        self.models = self.run(self.new_router())
        self.publish()

    async def new_router(self) -> RouterModels:
        return RouterModels(self.catalog, self.make)

    def make(self, version: VersionId, serving: Serving) -> Part:
        self.parts.append(Part(version, serving))
        return self.parts[-1]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def publish(self) -> None:
        self.number += 1
        model = ModelEntry(dict(self.entries), is_settled=self.is_settled)

        async def apply() -> None:
            self.models.apply(CatalogTable(self.number, {"m": model}))
            await settle()

        self.run(apply())

    @rule(version=VERSIONS, changed=st.booleans())
    def offer(self, version: int, changed: bool) -> None:
        """Deploy a version, again perhaps, with other contents perhaps."""
        entry = self.entries.get(version)
        if entry is not None and entry.serving is not None:
            return
        self.deployments += 1
        contents = f"{version} {self.deployments if changed else 0}"
        serving = Serving(f"d{self.deployments}", contents, NOBODY)
        self.entries[version] = VersionEntry(State.LOADING, serving=serving)
        self.publish()

    @rule(version=VERSIONS)
    def activate(self, version: int) -> None:
        """As the controller does when all routers have said that they have loaded it."""
        entry = self.entries.get(version)
        if entry is None or entry.serving is None:
            return
        loaded = self.run(self.report()).loaded
        if loaded.get(VersionId("m", version)) == entry.serving.deployment:
            active = replace(entry.serving, is_active=True)
            self.entries[version] = VersionEntry(State.AVAILABLE, serving=active)
            self.answering.add(version)
            self.publish()

    async def report(self) -> Any:
        return self.models.report()

    @rule(version=VERSIONS)
    def withdraw(self, version: int) -> None:
        if version in self.entries:
            self.entries[version] = VersionEntry(State.END)
            self.answering.discard(version)
            self.publish()

    @rule()
    def die(self) -> None:
        """The next controller knows nothing yet."""
        self.entries = {}
        self.is_settled = False
        self.number += 100
        self.publish()

    @precondition(lambda self: any(one.serving for one in self.entries.values()))
    @rule()
    def be_settled(self) -> None:
        self.is_settled = True
        self.answering &= self.entries.keys()
        self.publish()

    @rule(which=st.integers(0, 9), fails=st.booleans())
    def finish_a_load(self, which: int, fails: bool) -> None:
        waiting = [part for part in self.parts if not part.outcome.done()]
        if not waiting:
            return
        part = waiting[which % len(waiting)]

        async def finish() -> None:
            if fails:
                part.outcome.set_exception(Unavailable("no room"))
            else:
                part.outcome.set_result(None)
            await settle()

        self.run(finish())

    @invariant()
    def what_has_answered_answers_until_it_is_withdrawn(self) -> None:
        for version in getattr(self, "answering", ()):
            assert self.catalog.resolve(ModelSpec("m", version))

    @invariant()
    def what_is_active_answers(self) -> None:
        if not hasattr(self, "models"):
            return
        for version, entry in self.entries.items():
            if entry.serving is not None and entry.serving.is_active:
                found = cast(Part, self.catalog.resolve(ModelSpec("m", version)))
                assert found.serving.fingerprint == entry.serving.fingerprint

    @invariant()
    def nothing_that_answers_is_closed_and_nothing_is_closed_twice(self) -> None:
        if not hasattr(self, "models"):
            return
        for version in self.catalog.models["m"].versions.values():
            if version.servable is not None:
                assert not cast(Part, version.servable).closed
        assert all(part.closed <= 1 for part in self.parts)

    @invariant()
    def what_is_not_held_holds_nothing(self) -> None:
        if not hasattr(self, "models"):
            return
        held = self.run(self.report()).held
        assert all(part.closed for part in self.parts if part.version not in held)

    def teardown(self) -> None:
        if hasattr(self, "models"):
            self.run(self.models.close())
            assert all(part.closed == 1 for part in self.parts)
            self.loop.close()


async def settle() -> None:
    """Long enough for all that can go on without us."""
    for _ in range(30):
        await asyncio.sleep(0)


TestRouter = Router.TestCase
TestRouter.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


class Stranded(Part):
    """Its actors can be asked at first, and never again once it follows others."""

    async def connected(self) -> None:
        if self.serving.deployment != "first":
            await asyncio.Event().wait()


async def test_a_version_that_is_replaced_while_it_connects_anew_is_waited_for_no_more() -> None:
    one = VersionId("m", 1)
    parts: list[Stranded] = []

    def make(version: VersionId, serving: Serving) -> Stranded:
        parts.append(Stranded(version, serving))
        return parts[-1]

    models = RouterModels(Catalog(), make)

    async def apply(number: int, serving: Serving) -> None:
        entry = VersionEntry(State.AVAILABLE, serving=serving)
        models.apply(CatalogTable(number, {"m": ModelEntry({one.version: entry})}))
        await settle()

    await apply(1, Serving("first", "same", NOBODY, is_active=True))
    parts[0].outcome.set_result(None)
    await settle()
    await apply(2, Serving("second", "same", NOBODY, is_active=True))
    await apply(3, Serving("third", "other", NOBODY))
    assert models.report().held == {one}

    async with asyncio.timeout(10):
        await models.close()

    assert [part.closed for part in parts] == [1, 1]
