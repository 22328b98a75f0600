"""How the memory of a process that serves is collected."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: New objects, less those freed, between two collections of the youngest. Requests leave no cycles
#: behind, but each has some objects while it lasts: with few of these allowed, every batch would be
#: looked through once or twice.
_YOUNGEST = 50_000


def settle_memory() -> None:
    """What there is now stays: collections are not to look at it, and are not to come often.

    What loading made lives as long as the process does: TensorFlow alone is a million objects, and
    each full collection would look at them all while requests wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNGEST)


def return_free_memory() -> None:
    """Give the pages that the C heap holds free back to the system, with glibc.

    Loading a model of 100,000 nodes leaves 300 MB of them. Takes tens of ms for each GB of heap, in
    which other threads may wait to allocate.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class _Pauses:
    """Who has collections paused, of all threads, and what is to be restored after the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._was_enabled = False

    def begin(self) -> None:
        with self._lock:
            if self._users == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._users += 1

    def end(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._was_enabled:
                gc.enable()


_PAUSES = _Pauses()


@contextmanager
def collections_paused() -> Iterator[None]:
    """No collection begins by itself in this process while any thread is in here.

    For work that makes many objects which stay: each collection would look at all of them, and find
    nothing. Cycles that others leave behind meanwhile stay as well, so nothing should wait long in
    here. When the last one leaves, by an error too, collections are as they were before the first
    came. They are not begun by leaving. Also a decorator.
    """
    _PAUSES.begin()
    try:
        yield
    finally:
        _PAUSES.end()
