"""One round of lookups: split over the shards, asked for, merged."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.router.lookups import Prepared, prepare
from shardserve.router.merge import merge_gathered, merge_pooled
from shardserve.router.partition import Fragment, TablePartition, partitions_of
from shardserve.router.servable import RequestContext
from shardserve.shards.cut.lookups import Lookup
from shardserve.shards.fan_out import fan_out
from shardserve.shards.layout import Layout
from shardserve.shards.messages import LookupReply, LookupRequest, ShardChannel
from shardserve.shards.tables import Table

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class SplitRound:
    """What a round asks: `requests` by shard, and for each part which lookup's fragment it is."""

    prepared: tuple[Prepared, ...]
    requests: Mapping[int, LookupRequest]
    owners: Mapping[int, tuple[tuple[int, Fragment], ...]]


class Fanout:
    """Splits and merges one model's lookups by its layout. Its only state is a turn counter."""

    def __init__(self, layout: Layout, tables: Mapping[str, Table]) -> None:
        self._tables = dict(tables)
        self._partitions: dict[str, TablePartition] = partitions_of(layout, self._tables)
        self._dtypes = {name: _graph_dtype(table) for name, table in tables.items()}
        self._turns = itertools.count()

    def split(self, lookups: Sequence[Lookup], known: Mapping[str, Array]) -> SplitRound:
        """The round's requests. Raises what `prepare` raises; nothing has been asked then."""
        turn = next(self._turns)
        prepared = tuple(prepare(one, self._tables[one.table], known) for one in lookups)
        owners: dict[int, list[tuple[int, Fragment]]] = {}
        for number, one in enumerate(prepared):
            partition = self._partitions[one.lookup.table]
            for fragment in partition.fragments(one.ids, one.bags, turn):
                owners.setdefault(fragment.shard, []).append((number, fragment))
        requests = {
            shard: LookupRequest(tuple(fragment.part for _, fragment in asked))
            for shard, asked in owners.items()
        }
        return SplitRound(prepared, requests, {s: tuple(o) for s, o in owners.items()})

    def merge(self, split: SplitRound, replies: Mapping[int, LookupReply]) -> dict[str, Array]:
        """The tensors that the round makes known."""
        answers: list[list[tuple[Fragment, Array]]] = [[] for _ in split.prepared]
        for shard in sorted(split.owners):
            results = replies[shard].results
            for (number, fragment), result in zip(split.owners[shard], results, strict=True):
                answers[number].append((fragment, result))
        return {
            one.lookup.output: self._merged(one, found)
            for one, found in zip(split.prepared, answers, strict=True)
        }

    def _merged(self, one: Prepared, answers: list[tuple[Fragment, Array]]) -> Array:
        table = self._tables[one.lookup.table]
        merge = merge_gathered if one.bags is None else merge_pooled
        return one.finished(merge(table, one.count, answers), self._dtypes[table.name])


async def ask(
    split: SplitRound, channels: Sequence[ShardChannel], context: RequestContext
) -> dict[int, LookupReply]:
    """Send a round's requests and wait for all replies, or for the first error.

    Spends on `context` the slowest shard's own waiting and computing, and what is left as "wire".
    """
    started = time.monotonic()
    asked = [(channels[shard], request) for shard, request in split.requests.items()]
    replies = await fan_out(asked, context.deadline)
    elapsed = time.monotonic() - started
    slowest = max(
        replies, key=lambda r: r.queue_seconds + r.lookup_seconds, default=LookupReply(())
    )
    context.spend("queue", slowest.queue_seconds)
    context.spend("lookup", slowest.lookup_seconds)
    context.spend("wire", max(0.0, elapsed - slowest.queue_seconds - slowest.lookup_seconds))
    return dict(zip(split.requests, replies, strict=True))


def _graph_dtype(table: Table) -> np.dtype[Any]:
    if table.dtype == "bfloat16":
        import ml_dtypes  # noqa: PLC0415 (comes with TensorFlow; only such tables need it)

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(table.dtype)
