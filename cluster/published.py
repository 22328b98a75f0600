"""A value that many wait on: numbered, replaced whole, so that no reader sees half an update."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Generic, Protocol, TypeVar

from shardserve.cluster.broadcast import Broadcast


class Numbered(Protocol):
    """A snapshot that says which one it is."""

    @property
    def number(self) -> int:
        """Rises with every change."""
        ...


T = TypeVar("T", bound=Numbered)


class Published(Generic[T]):
    """The latest snapshot. All calls must come from one event loop."""

    def __init__(self, first: T) -> None:
        self._latest = first
        self._changed = Broadcast()

    @property
    def latest(self) -> T:
        return self._latest

    def publish(self, snapshot: T) -> None:
        """Replace the snapshot and wake all who wait; nobody, where its number is the latest."""
        if snapshot.number == self._latest.number:
            return
        self._latest = snapshot
        self._changed.send()

    async def wait(self, known: int, timeout: float) -> T:  # noqa: ASYNC109 (no error, an answer)
        """The latest snapshot, at once unless its number is `known`.

        Then the next one, or after `timeout` seconds the known one again. Any other number than
        the latest makes it answer at once, so that a reader who knew an earlier life of the
        publisher catches up.
        """
        if self._latest.number == known:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout)
        return self._latest
