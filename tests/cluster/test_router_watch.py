"""What a controller makes of its routers' silence, by a clock of the test's."""

from __future__ import annotations

import asyncio
import time

import pytest

from shardserve.cluster.leases import RouterReport
from shardserve.cluster.router_metrics import RouterMetrics
from shardserve.cluster.router_watch import RouterWatch
from shardserve.cluster.versions import VersionId
from shardserve.router.metric_families import REQUESTS
from shardserve.router.metric_snapshot import Snapshot, summed, unpacked

ONE = VersionId("m", 1)
COUNTED = Snapshot({REQUESTS.name: {("m", "OK"): 3}})


class Enough(Exception):
    """The test has seen enough."""


class Clock:
    """Seconds that pass in `pause`: those that are given, and then no more."""

    def __init__(self, start: float, *pauses: float) -> None:
        self.now = start
        self._pauses = iter(pauses)

    async def pause(self, _: float) -> None:
        seconds = next(self._pauses, None)
        if seconds is None:
            raise Enough
        self.now += seconds

    def __call__(self) -> float:
        return self.now


async def gone_after(*pauses: float) -> list[str]:
    """Which routers are gone when their silence lasted for these looks."""
    watch = RouterWatch(0)
    watch.heard("router", RouterReport())
    gone: list[str] = []
    clock = Clock(time.monotonic(), *pauses)
    with pytest.raises(Enough):
        await watch.expire(gone.append, clock.pause, clock)
    return gone


async def test_a_router_that_is_silent_for_its_lease_is_gone() -> None:
    assert await gone_after(*[1.0] * 17) == ["router"]


async def test_a_controller_that_stood_still_takes_nobody_for_gone() -> None:
    assert await gone_after(60.0) == []
    assert await gone_after(60.0, *[1.0] * 17) == ["router"]


async def test_nobody_is_waited_for_after_the_end() -> None:
    watch = RouterWatch(2)
    watch.heard("router", RouterReport(1, applied=3, held=frozenset({ONE})))
    waiting = [
        asyncio.ensure_future(watch.dropped(ONE, 4)),
        asyncio.ensure_future(watch.follow(4)),
    ]
    await asyncio.sleep(0)
    assert not any(one.done() for one in waiting)
    watch.end()
    await asyncio.gather(*waiting)


async def test_a_router_that_was_thought_gone_is_counted_once() -> None:
    metrics = RouterMetrics()
    for number in range(3):
        metrics.reported("router", number, COUNTED.packed())
        metrics.gone("router")
    metrics.reported("other", 3, COUNTED.packed())
    metrics.gone("other")
    metrics.reported("router", 3, COUNTED.packed())
    told = unpacked(await metrics.collected(3, ["router"], 0.0))
    assert told == summed([COUNTED, COUNTED.past()])


async def test_what_any_number_of_routers_counted_that_have_gone_stays() -> None:
    metrics = RouterMetrics()
    for number in range(100):
        metrics.reported(f"router {number}", number, COUNTED.packed())
        metrics.gone(f"router {number}")
    told = unpacked(await metrics.collected(0, [], 0.0))
    assert told == summed([COUNTED.past()] * 100)
