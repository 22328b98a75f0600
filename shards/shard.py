"""One shard: its slices, and the lookups on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardserve.batching.errors import InvalidArgument, ServingError
from shardserve.shards import scoring
from shardserve.shards.layout import Slice
from shardserve.shards.loading import Progress
from shardserve.shards.measures import Measure, RowTally, store_measures
from shardserve.shards.messages import Array, LookupRequest, Op, Part, ScorePart
from shardserve.shards.store import SliceStore, array_dtype
from shardserve.shards.tables import TableSource
from shardserve.shards.tiers import open_stores

#: What a part that may have to wait for a disk or a device costs besides its bytes: enough that no
#: event loop does the waiting.
_WAIT_COST = (1 << 20) + 1


class Shard:
    """Slices, each in its store, by slice id; `tables` names each one's table, for measures.

    Safe for many threads at once; never changes, but for what it counts.
    It computes where it is called, and lets go of the interpreter's lock while it does.
    """

    def __init__(self, stores: Sequence[SliceStore], tables: Sequence[str] = ()) -> None:
        self.stores = tuple(stores)
        self._tables = tuple(tables) or ("",) * len(self.stores)
        self._looked_up = RowTally(len(self.stores))
        self._row_bytes = [_row_bytes(store) for store in stores]
        self._base_cost = [_WAIT_COST if store.may_wait else 0 for store in stores]

    @classmethod
    def load(
        cls,
        sources: Mapping[str, TableSource],
        slices: Sequence[Slice],
        progress: Progress | None = None,
        cache_bytes: int = 0,
    ) -> Shard:
        """The shard that holds `slices` (`Layout.slices_of_shard`), from the checkpoint.

        `progress` is told of bytes as they come. `cache_bytes` is for hot rows of mapped slices.
        Raises as `open_stores` does.
        """
        stores = list(open_stores(sources, slices, progress, cache_bytes))
        return cls(stores, [piece.table for piece in slices])

    @property
    def nbytes(self) -> int:
        """Bytes of all slices where they are kept."""
        return sum(store.nbytes for store in self.stores)

    @property
    def may_wait(self) -> bool:
        """Whether some answers may have to wait for a disk or a device."""
        return any(store.may_wait for store in self.stores)

    def measures(self) -> list[Measure]:
        """What the slices tell of themselves, as `store_measures` has it."""
        return store_measures(self._tables, self.stores, self._looked_up.rows)

    def execute(self, request: LookupRequest) -> tuple[Array, ...]:
        """The answers to the request's parts, then to its scores. The arrays are the caller's.

        Raises InvalidArgument, naming the part, for a slice that is not here and for arrays that
        do not fit their slice or each other; Unimplemented for what the slice's store cannot do.
        """
        parts: tuple[Part | ScorePart, ...] = (*request.parts, *request.scores)
        answers = tuple(self._answer(place, part) for place, part in enumerate(parts))
        self._looked_up.add((part.slice_id, part.rows.size) for part in request.parts)
        return answers

    def cost(self, request: LookupRequest) -> int:
        """Bytes that `execute` reads and writes, roughly. Never raises."""
        scores = sum(scoring.cost(self.stores, part) for part in request.scores)
        return scores + sum(self._cost(part) for part in request.parts)

    def _answer(self, place: int, part: Part | ScorePart) -> Array:
        if not 0 <= part.slice_id < len(self.stores):
            raise InvalidArgument(
                f"parts[{place}]: slice {part.slice_id} is not in [0, {len(self.stores)})"
            )
        try:
            return _apply(self.stores[part.slice_id], part)
        except ServingError as error:
            raise type(error)(f"parts[{place}]: slice {part.slice_id}: {error.message}") from error

    def _cost(self, part: Part) -> int:
        if not 0 <= part.slice_id < len(self._row_bytes):
            return 0
        answers = part.rows.size if part.offsets is None else part.offsets.size
        touched = (part.rows.size + answers) * self._row_bytes[part.slice_id]
        return touched + part.rows.nbytes + self._base_cost[part.slice_id]


def _apply(store: SliceStore, part: Part | ScorePart) -> Array:
    if isinstance(part, ScorePart):
        return scoring.answer(store, part)
    match part.op:
        case Op.GATHER if part.offsets is None and part.weights is None:
            return store.gather(part.rows)
        case Op.POOL if part.offsets is not None:
            return store.pool(part.rows, part.offsets, part.weights)
        case Op.GATHER:
            raise InvalidArgument("a gather takes neither offsets nor weights")
        case Op.POOL:
            raise InvalidArgument("a pool takes offsets")
    raise InvalidArgument(f"unknown operation {part.op}")


def _row_bytes(store: SliceStore) -> int:
    return store.columns * array_dtype(store.dtype).itemsize
