from __future__ import annotations

import asyncio
from dataclasses import dataclass

from shardserve.cluster.published import Published


@dataclass(frozen=True)
class Snapshot:
    number: int
    text: str = ""


FOREVER = 1e6


async def test_a_reader_who_knows_nothing_is_answered_at_once() -> None:
    published = Published(Snapshot(7))

    assert await published.wait(-1, FOREVER) == Snapshot(7)


async def test_a_reader_who_knows_the_latest_waits_for_the_next() -> None:
    published = Published(Snapshot(1))
    readers = [asyncio.ensure_future(published.wait(1, FOREVER)) for _ in range(3)]
    await asyncio.sleep(0)

    published.publish(Snapshot(2, "new"))

    assert await asyncio.gather(*readers) == [Snapshot(2, "new")] * 3


async def test_a_slow_reader_skips_to_the_latest() -> None:
    published = Published(Snapshot(1))
    for number in range(2, 9):
        published.publish(Snapshot(number))

    assert await published.wait(1, FOREVER) == Snapshot(8)


async def test_nothing_new_gives_the_known_snapshot_again_in_time() -> None:
    published = Published(Snapshot(1))

    assert await published.wait(1, 0.0) == Snapshot(1)


async def test_a_reader_with_a_number_from_another_life_is_answered_at_once() -> None:
    published = Published(Snapshot(1))

    assert await published.wait(900, FOREVER) == Snapshot(1)


async def test_an_unchanged_snapshot_wakes_nobody() -> None:
    published = Published(Snapshot(1))
    reader = asyncio.ensure_future(published.wait(1, FOREVER))
    await asyncio.sleep(0)

    published.publish(Snapshot(1))
    await asyncio.sleep(0)

    assert not reader.done()
    reader.cancel()


async def test_a_cancelled_reader_disturbs_no_other() -> None:
    published = Published(Snapshot(1))
    gone, other = (asyncio.ensure_future(published.wait(1, FOREVER)) for _ in range(2))
    await asyncio.sleep(0)

    gone.cancel()
    published.publish(Snapshot(2))

    assert await other == Snapshot(2)
    assert gone.cancelled() or gone.cancelling()
