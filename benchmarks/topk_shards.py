"""Our subject of `benchmarks.topk`: 4 shard processes with a quarter of the items each.

`python -m benchmarks.topk_shards PATH:PART:ITEMS` is one of them.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.shard_processes import serve, shard_processes
from benchmarks.topk_peers import Search
from shardserve.shards.memory import empty
from shardserve.shards.messages import Axis
from shardserve.shards.plan import PlanRequest, plan_layout
from shardserve.shards.replicas import ReplicatedChannel
from shardserve.shards.shard import Shard
from shardserve.shards.store import HostStore
from shardserve.shards.tables import Table

Array = npt.NDArray[Any]

SHARDS = 4
DIM = 64
K = 100
DEADLINE_SECONDS = 600.0


def items_of(items: int) -> Array:
    """All items, [items, DIM]."""
    table = empty((items, DIM), np.float32)
    size = items // SHARDS
    for part in range(SHARDS):
        _fill(table[part * size : (part + 1) * size], part)
    return table


def _fill(out: Array, part: int) -> None:
    rng = np.random.default_rng(part)
    for start in range(0, len(out), 1 << 16):
        piece = out[start : start + (1 << 16)]
        piece[:] = rng.standard_normal(piece.shape, np.float32)


@contextmanager
def sharded(loop: asyncio.AbstractEventLoop, items: int) -> Iterator[Search]:
    """Start the shards, and connect a router's streams to them."""
    with shard_processes(
        loop, __name__, SHARDS, lambda path, part: f"{path}:{part}:{items}"
    ) as channels:
        yield _search(loop, items, channels)


def _search(
    loop: asyncio.AbstractEventLoop, items: int, channels: list[ReplicatedChannel]
) -> Search:
    from shardserve.router.rounds import Fanout, ask
    from shardserve.router.servable import RequestContext
    from shardserve.shards.cut.scorings import Pick, Scoring

    table = Table("items", "float32", items, (DIM,))
    scoring = Scoring(
        output="values:0",
        indices="indices:0",
        table="items",
        node="top_k",
        product="matmul",
        queries="queries:0",
        axis=Axis.ROWS,
        pick=Pick.TOP_K,
        k=K,
    )
    tables = {"items": table}
    plan = plan_layout(tables, PlanRequest(SHARDS), {"items": Axis.ROWS})
    fanout = Fanout(plan.layout, tables)

    def search(queries: Array) -> tuple[Array, Array]:
        split = fanout.split([scoring], {"queries:0": queries})
        context = RequestContext("benchmark", time.monotonic() + DEADLINE_SECONDS)
        replies = loop.run_until_complete(ask(split, channels, context))
        tensors = fanout.merge(split, replies)
        return tensors["values:0"], tensors["indices:0"]

    return search


def main(argument: str) -> None:
    """Serve until standard input ends."""
    path, part, items = argument.rsplit(":", 2)
    rows = empty((int(items) // SHARDS, DIM), np.float32)
    _fill(rows, int(part))
    serve(Shard([HostStore(rows)]), path)


if __name__ == "__main__":
    main(sys.argv[1])
