"""One shard: its slices, and the lookups on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardserve.batching.errors import InvalidArgument, ServingError
from shardserve.shards import scoring
from shardserve.shards.layout import Slice
from shardserve.shards.loading import Progress, load_slice
from shardserve.shards.messages import Array, LookupRequest, Op, Part, ScorePart
from shardserve.shards.store import HostStore, SliceStore, array_dtype
from shardserve.shards.tables import TableSource


class Shard:
    """Slices, each in its store, by slice id. Safe for many threads at once; never changes.

    It computes where it is called, and lets go of the interpreter's lock while it does.
    """

    def __init__(self, stores: Sequence[SliceStore]) -> None:
        self.stores = tuple(stores)
        self._row_bytes = [_row_bytes(store) for store in stores]

    @classmethod
    def load(
        cls,
        sources: Mapping[str, TableSource],
        slices: Sequence[Slice],
        progress: Progress | None = None,
    ) -> Shard:
        """The shard that holds `slices` (`Layout.slices_of_shard`), read from the checkpoint.

        `progress` is told of bytes as they come. Raises as `load_slice` does, and InvalidArgument
        for a slice of a table that is not in `sources`.
        """
        stores = []
        for piece in slices:
            if piece.table not in sources:
                raise InvalidArgument(
                    f"slice of table {piece.table!r}: the model has no such table"
                )
            source = sources[piece.table]
            stores.append(HostStore(load_slice(source, piece, progress), source.table.dtype))
        return cls(stores)

    @property
    def nbytes(self) -> int:
        """Bytes of all slices where they are kept."""
        return sum(store.nbytes for store in self.stores)

    def execute(self, request: LookupRequest) -> tuple[Array, ...]:
        """The answers to the request's parts, then to its scores. The arrays are the caller's.

        Raises InvalidArgument, naming the part, for a slice that is not here and for arrays that
        do not fit their slice or each other; Unimplemented for what the slice's store cannot do.
        """
        parts: tuple[Part | ScorePart, ...] = (*request.parts, *request.scores)
        return tuple(self._answer(place, part) for place, part in enumerate(parts))

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
        return touched + part.rows.nbytes


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
