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
    bags + 1 entries, from 0 to n, never falling. `weights` has n entries. Sums and weights are of
    `halves.sums_dtype`: the table's dtype, or float32 for one of half precision.
    """

    slice_id: int
    op: Op
    rows: Array
    offsets: Array | None = None
    weights: Array | None = None


class Axis(enum.IntEnum):
    """Along which axis of a table its classes (a retrieval's items) lie."""

    ROWS = 0
    COLUMNS = 1


@dataclass(frozen=True, slots=True)
class ScorePart:
    """Queries to score against one slice, which is a matrix or the transpose of one.

    The slice's classes are its rows or its columns, as `axis` says; the other axis is as wide as
    the queries. `queries` is [n, width], float64 for a table of float64 and float32 for all others.
    With `k` of 0 the answer is every score, [n, classes], of the queries' dtype.

    With a `k` it is the k best of each query (all, where the slice has fewer), as `best.pack` has
    them: local numbers of classes, ties to the lower one. Scores are then rounded to the table's
    dtype, `bias` [classes] is added, of the queries' dtype and rounded again, and `totals` asks
    for what a softmax over all classes needs to know.
    """

    slice_id: int
    queries: Array
    axis: Axis
    k: int = 0
    bias: Array | None = None
    totals: bool = False


@dataclass(frozen=True, slots=True)
class LookupRequest:
    """All that one request, or one batch, asks of one shard."""

    parts: tuple[Part, ...]
    scores: tuple[ScorePart, ...] = ()


@dataclass(frozen=True, slots=True)
class LookupReply:
    """The results answer `parts`, then `scores`, each in its place.

    The seconds are the shard's own: waiting, then computing.
    """

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
