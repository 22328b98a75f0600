"""Work that has to be undone, which nobody can do before it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def on_thread(work: Callable[[], T]) -> T:
    """`asyncio.to_thread`; but one that is cancelled returns only when the thread is through.

    What the thread has made is there then, for whoever tidies up.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise
