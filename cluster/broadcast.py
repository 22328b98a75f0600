"""News that many wait for at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal


class Broadcast:
    """Wakes all who wait now; who waits afterwards waits for the next one. For one event loop."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def send(self) -> None:
        """Wake everybody."""
        self._next.set()
        self._next = asyncio.Event()

    def wait(self) -> Coroutine[Any, Any, Literal[True]]:
        """To be awaited: until `send` is called after this call, though it be before the await."""
        return self._next.wait()
