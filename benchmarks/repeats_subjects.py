"""Ways to look up ids that are repeated, for `benchmarks.repeats`.

`python -m benchmarks.repeats_subjects PATH:PART:SHARDS:DIM:BYTES` is a shard process.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.shard_processes import serve, shard_processes
from shardserve.shards import layout as layouts
from shardserve.shards.distinct import DistinctFinder
from shardserve.shards.kernels import RowKernels
from shardserve.shards.layout import Layout
from shardserve.shards.local import LocalChannel
from shardserve.shards.mapped import MappedStore
from shardserve.shards.memory import empty
from shardserve.shards.messages import ShardChannel
from shardserve.shards.shard import Shard
from shardserve.shards.store import HostStore
from shardserve.shards.tables import Extent, Table, TableSource

Array = npt.NDArray[Any]
Lookup = Callable[[Array], Array]

EACH, ONCE = "each id", "once"
BAG = 20
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Lookups:
    """A table of `rows` rows, and three ways to look up ids (int64 [n]), with equal answers."""

    rows: int
    each: Lookup
    once: Lookup
    decided: Lookup


def _table(table_bytes: int, dim: int) -> Table:
    return Table("table", "float32", table_bytes // (4 * dim), (dim,))


def _values(rows: Array, dim: int) -> Array:
    """The table's rows of these numbers: their numbers, as float32."""
    values = empty((len(rows), dim), np.float32)
    values[:] = rows[:, None]
    return values


@contextmanager
def gathers(
    loop: asyncio.AbstractEventLoop, table_bytes: int, dim: int, shards: int
) -> Iterator[Lookups]:
    """Rows from so many shard processes; from a shard in this one, if none."""
    from shardserve.router.repeats import Repeats
    from shardserve.router.rounds import Fanout, ask
    from shardserve.router.servable import RequestContext
    from shardserve.shards.cut import lookups

    table = _table(table_bytes, dim)
    layout = Layout(max(shards, 1), 1, {table.name: layouts.row_mod(table, range(max(shards, 1)))})
    gather = lookups.Lookup("rows:0", table.name, "gather", lookups.Motif.GATHER, "ids:0")
    with ExitStack() as stack:
        channels = stack.enter_context(_channels(loop, table, shards))

        def through(repeats: Repeats | None) -> Lookup:
            fanout = Fanout(layout, {table.name: table}, repeats)

            def look_up(ids: Array) -> Array:
                split = fanout.split([gather], {"ids:0": ids})
                context = RequestContext("benchmark", time.monotonic() + DEADLINE_SECONDS)
                replies = loop.run_until_complete(ask(split, channels, context))
                return fanout.merge(split, replies)["rows:0"]

            return look_up

        always = Repeats(lambda _ids, _row_bytes, _scattered: 0.0)
        yield Lookups(
            table.rows, through(None), through(always), through(Repeats() if shards else None)
        )


@contextmanager
def _channels(
    loop: asyncio.AbstractEventLoop, table: Table, shards: int
) -> Iterator[list[ShardChannel]]:
    if not shards:
        yield [LocalChannel(Shard([HostStore(_part(table, 0, 1))]))]
        return
    settings = f"{shards}:{table.columns}:{table.nbytes}"
    with shard_processes(
        loop, __name__, shards, lambda path, part: f"{path}:{part}:{settings}"
    ) as channels:
        yield list(channels)


def _part(table: Table, part: int, parts: int) -> Array:
    return _values(np.arange(part, table.rows, parts), table.columns)


@contextmanager
def pools(table_bytes: int, dim: int) -> Iterator[Lookups]:
    """Sums of `BAG` rows in memory, of the rows as they come, and of the different ones' copies."""
    table = _table(table_bytes, dim)
    store = HostStore(_part(table, 0, 1))
    finder = DistinctFinder()

    def each(ids: Array) -> Array:
        return store.pool(ids, np.arange(0, len(ids) + 1, BAG), None)

    def once(ids: Array) -> Array:
        found = finder.find(ids, 0.0)
        assert found is not None
        rows = RowKernels(store.gather(found.values))
        return rows.pool(found.places, np.arange(0, len(ids) + 1, BAG))

    yield Lookups(table.rows, each, once, each)


class _EachRead(MappedStore):
    """Reads a row as often as it is asked for."""

    _read = MappedStore._read_each  # noqa: SLF001 (its other way)


@contextmanager
def mapped(table_bytes: int, dim: int) -> Iterator[Lookups]:
    """Rows of a file that the system has in its cache."""
    table = _table(table_bytes, dim)
    finder = DistinctFinder()
    with tempfile.NamedTemporaryFile() as file:
        _part(table, 0, 1).tofile(file.name)
        source = TableSource(table, (Extent(file.name, 0, 0, table.rows, 0, dim),))
        (piece,) = layouts.row_mod(table, [0]).slices
        each, decided = _EachRead(source, piece), MappedStore(source, piece)

        def once(ids: Array) -> Array:
            found = finder.find(ids, 0.0)
            assert found is not None
            rows: Array = each.gather(found.values).take(found.places, axis=0)
            return rows

        yield Lookups(table.rows, each.gather, once, decided.gather)


def main(argument: str) -> None:
    """Serve until standard input ends."""
    path, part, shards, dim, nbytes = argument.rsplit(":", 4)
    rows = _part(_table(int(nbytes), int(dim)), int(part), int(shards))
    serve(Shard([HostStore(rows)]), path)


if __name__ == "__main__":
    main(sys.argv[1])
