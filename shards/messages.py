"""What a router asks of a shard, and what the shard answers, on whatever transport."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]


class Op(enum.IntEnum):
    """What to do with the rows of one slice."""

    GATHER = 0
    POOL = 1


@dataclass(frozen=True, slots=True)
class Part:
    """Work on one slice.

    `slice_id` is the slice's place in the shard's list of slices (`Layout.slices_of_shard`).
    `rows`, int32 or int64 [n], are local row numbers within the slice.
    GATHER answers [n, columns], of the table's dtype, bytes unchanged.
    POOL answers [bags, columns]: bag b is the sum of rows[offsets[b]:offsets[b + 1]], each times
    its weight where there are weights; an empty bag is zeros. `offsets`, int32 or int64, has
    bags + 1 entries, from 0 to n, never falling. `weights`, of the table's dtype, has n entries.
    """

    slice_id: int
    op: Op
    rows: Array
    offsets: Array | None = None
    weights: Array | None = None


@dataclass(frozen=True, slots=True)
class LookupRequest:
    """All that one request, or one batch, asks of one shard."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class LookupReply:
    """`results[i]` answers `parts[i]`. The seconds are the shard's own: waiting, then computing."""

    results: tuple[Array, ...]
    queue_seconds: float = 0.0
    lookup_seconds: float = 0.0


class ShardChannel(Protocol):
    """A way to one shard (whichever of its replicas answers). Safe for many requests at once."""

    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        """Answer, or raise a `ServingError`, by `deadline` (on `time.monotonic`).

        Raises Unavailable when no replica can be reached, DeadlineExceeded when the time is up
        (on either side), InvalidArgument for rows outside the slice. Cancelling the awaiting task
        tells the shard to forget the request. Arrays in the reply may be read-only views.
        """
        ...
