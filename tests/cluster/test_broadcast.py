"""Who is woken by news, and who is not."""

from __future__ import annotations

import asyncio

from shardserve.cluster.broadcast import Broadcast


async def test_what_is_sent_before_a_task_has_begun_to_wait_wakes_it() -> None:
    news = Broadcast()
    waiting = asyncio.ensure_future(news.wait())
    news.send()
    async with asyncio.timeout(10):
        await waiting


async def test_all_who_wait_are_woken_and_who_comes_later_waits_for_the_next() -> None:
    news = Broadcast()
    news.send()  # Nobody waits yet.
    early = [asyncio.ensure_future(news.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(one.done() for one in early)

    news.send()
    late = asyncio.ensure_future(news.wait())
    async with asyncio.timeout(10):
        await asyncio.gather(*early)
    assert not late.done()

    news.send()
    async with asyncio.timeout(10):
        await late
