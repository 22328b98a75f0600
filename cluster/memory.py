"""What a run's controller knows of its lives before this one. Ray keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from shardserve.cluster.kept import Kept

T = TypeVar("T")

_RELOADED, _FOLLOWED, _OPENED, _FAILED = "reloaded", "followed", "opened", "failed"


class Memory:
    """Of one run. Nothing is known of it before `recall`. Belongs to the running event loop."""

    def __init__(self, run: str) -> None:
        self._kept = Kept(run)
        #: One, so that what is kept last is what was told last.
        self._keeper = ThreadPoolExecutor(1, "keeper")
        #: The configuration of a reload, if that is the last that came.
        self.reloaded: bytes | None = None
        #: The configuration file, as it was followed last.
        self.followed: str | None = None
        #: Whether the run's doors have been open. Before that is known they may have been.
        self.has_opened = True
        #: Why the life before this one ended, if it could tell.
        self.failure: str | None = None

    async def recall(self) -> None:
        """Learn what there was."""
        await self._do(self._recall)

    async def opened(self) -> None:
        """Doors may be open from now on."""
        await self._do(partial(self._kept.put, _OPENED, b"1"))
        self.has_opened = True

    async def reloads(self, config: bytes) -> None:
        """A reload's configuration counts from now on."""
        self.reloaded = config
        await self._do(partial(self._kept.put, _RELOADED, config))

    async def follows(self, text: str) -> None:
        """The file's configuration counts from now on, which says this."""
        if text != self.followed:
            self.followed = text
            await self._do(partial(self._kept.put, _FOLLOWED, text.encode()))
        if self.reloaded is not None:
            self.reloaded = None
            await self._do(partial(self._kept.forget, _RELOADED))

    async def fails(self, why: str) -> None:
        """This life ends."""
        await self._do(partial(self._kept.put, _FAILED, why.encode()))

    async def forget(self) -> None:
        """The run is over."""
        await self._do(self._kept.forget_all)

    def _recall(self) -> None:
        self.reloaded, followed, opened, failure = map(
            self._kept.get, (_RELOADED, _FOLLOWED, _OPENED, _FAILED)
        )
        self.followed = None if followed is None else followed.decode()
        self.failure = None if failure is None else failure.decode()
        self.has_opened = opened is not None
        self._kept.forget(_FAILED)

    async def _do(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._keeper, call)
