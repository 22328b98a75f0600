"""No request loses its servable before it has ended, and nobody waits for longer than that."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from shardserve.batching.errors import NotFound
from shardserve.router.catalog import Catalog, Model, ModelSpec, Snapshot, State, Version


class Request:
    """One that is under way: where it entered, when, and what it resolved."""

    def __init__(self, snapshot: Snapshot, began: int) -> None:
        self.snapshot = snapshot
        self.began = began
        self.holds: set[Any] = set()


class Loaded:
    """Stands for a servable, of which the catalog needs nothing."""

    def __init__(self) -> None:
        self.is_freed = False


class GracePeriods(RuleBasedStateMachine):
    """Requests come, resolve and go, while versions are replaced, waited for, and freed."""

    requests: Any = Bundle("requests")

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.served = [Loaded()]
        self.catalog = Catalog(self.models())
        self.replaced = 0
        self.under_way: list[Request] = []
        #: Each with the number of the replacement before which its requests began.
        self.waits: list[tuple[int, asyncio.Task[None]]] = []

    def models(self) -> dict[str, Model]:
        versions = {
            number: Version(State.AVAILABLE, cast(Any, one))
            for number, one in enumerate(self.served)
        }
        return {"m": Model(versions)}

    @rule(target=requests)
    def begin(self) -> Request:
        request = Request(self.catalog.enter(), self.replaced)
        self.under_way.append(request)
        return request

    @rule(request=requests)
    def resolve(self, request: Request) -> None:
        """At any time of its life, and any number of times."""
        try:
            request.holds.add(self.catalog.resolve(ModelSpec("m")))
        except NotFound:
            assert not self.served

    @rule(request=consumes(requests))
    def end(self, request: Request) -> None:
        self.under_way.remove(request)
        self.catalog.leave(request.snapshot)

    @rule(kept=st.integers(0, 1), added=st.integers(0, 2), frees=st.booleans())
    def replace(self, kept: int, added: int, frees: bool) -> None:
        before, self.served = self.served, self.served[:kept] + [Loaded() for _ in range(added)]
        self.catalog.replace(self.models())
        self.replaced += 1
        if frees:
            gone = [one for one in before if one not in self.served]
            self.waits.append((self.replaced, self.loop.create_task(self.free(gone))))

    async def free(self, gone: list[Loaded]) -> None:
        await self.catalog.quiesce()
        for one in gone:
            one.is_freed = True

    @invariant()
    def nobody_has_lost_its_servable(self) -> None:
        self.settle()
        for request in self.under_way:
            assert not any(one.is_freed for one in request.holds)

    @invariant()
    def who_waits_does_so_exactly_for_requests_that_began_before(self) -> None:
        self.settle()
        for replaced, waiting in self.waits:
            earlier = [request for request in self.under_way if request.began < replaced]
            assert waiting.done() == (not earlier)

    def settle(self) -> None:
        for _ in range(4):
            self.loop.run_until_complete(asyncio.sleep(0))

    def teardown(self) -> None:
        for request in self.under_way:
            self.catalog.leave(request.snapshot)
        self.settle()
        assert all(waiting.done() for _, waiting in self.waits)
        self.loop.close()


GracePeriods.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestGracePeriods = GracePeriods.TestCase


async def test_who_waits_while_nothing_is_under_way_returns_at_once() -> None:
    catalog = Catalog({})
    await asyncio.wait_for(catalog.quiesce(), 1)
    catalog.replace({})
    await asyncio.wait_for(catalog.quiesce(), 1)


async def test_requests_that_begin_later_are_not_waited_for() -> None:
    catalog = Catalog({})
    early = catalog.enter()
    catalog.replace({})
    late = catalog.enter()
    waiting = asyncio.ensure_future(catalog.quiesce())
    await asyncio.sleep(0)
    assert not waiting.done()
    catalog.leave(early)
    await asyncio.wait_for(waiting, 1)
    catalog.leave(late)


@pytest.mark.parametrize("entered", [0, 1, 3])
async def test_a_wait_that_is_cancelled_leaves_the_next_one_whole(entered: int) -> None:
    catalog = Catalog({})
    snapshots = [catalog.enter() for _ in range(entered)]
    catalog.replace({})
    waiting = asyncio.ensure_future(catalog.quiesce())
    await asyncio.sleep(0)
    waiting.cancel()
    for snapshot in snapshots:
        catalog.leave(snapshot)
    await asyncio.wait_for(catalog.quiesce(), 1)
