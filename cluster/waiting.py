"""Tells a person who waits what for, if it takes longer than expected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def noted_after(seconds: float, note: Callable[[], None]) -> Iterator[asyncio.TimerHandle]:
    """Call `note` when the block takes so long, unless what it is given is cancelled before."""
    timer = asyncio.get_running_loop().call_later(seconds, note)
    try:
        yield timer
    finally:
        timer.cancel()
