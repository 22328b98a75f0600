"""How the memory of a process that serves is collected."""

from __future__ import annotations

import ctypes
import gc

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
