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
from shardserve.router.repeats import Repeats
from shardserve.router.scores import PreparedScores, ScoreFragment, prepare_scores
from shardserve.router.servable import RequestContext, Said
from shardserve.shards.cut.scorings import AnyLookup, Scoring
from shardserve.shards.fan_out import fan_out
from shardserve.shards.layout import Layout
from shardserve.shards.messages import LookupReply, LookupRequest, ShardChannel
from shardserve.shards.tables import Table

Array = npt.NDArray[Any]
AnyPrepared = Prepared | PreparedScores
AnyFragment = Fragment | ScoreFragment


@dataclass(frozen=True, slots=True)
class SplitRound:
    """What a round asks: `requests` by shard, and for each part which lookup's fragment it is.

    Scorings are prepared last, so that a request's parts, then its scores, are in order.
    """

    prepared: tuple[AnyPrepared, ...]
    requests: Mapping[int, LookupRequest]
    owners: Mapping[int, tuple[tuple[int, AnyFragment], ...]]


class Fanout:
    """Splits and merges one model's lookups by its layout. Its only state is a turn counter.

    Without `repeats`, an id is asked for as often as a lookup names it.
    """

    def __init__(
        self, layout: Layout, tables: Mapping[str, Table], repeats: Repeats | None = None
    ) -> None:
        self._repeats = repeats
        self._tables = dict(tables)
        self._partitions: dict[str, TablePartition] = partitions_of(layout, self._tables)
        self._dtypes = {name: _graph_dtype(table) for name, table in tables.items()}
        self._turns = itertools.count()

    def split(self, lookups: Sequence[AnyLookup], known: Mapping[str, Array]) -> SplitRound:
        """The round's requests.

        Raises what `prepare` and `prepare_scores` raise; nothing has been asked then.
        """
        turn = next(self._turns)
        ordered = sorted(lookups, key=lambda one: isinstance(one, Scoring))
        prepared = tuple(self._prepared(one, known) for one in ordered)
        owners: dict[int, list[tuple[int, AnyFragment]]] = {}
        for number, one in enumerate(prepared):
            for fragment in self._fragments(one, turn):
                owners.setdefault(fragment.shard, []).append((number, fragment))
        requests = {shard: _request(asked) for shard, asked in owners.items()}
        return SplitRound(prepared, requests, {s: tuple(o) for s, o in owners.items()})

    def merge(self, split: SplitRound, replies: Mapping[int, LookupReply]) -> dict[str, Array]:
        """The tensors that the round makes known."""
        answers: list[list[tuple[Any, Array]]] = [[] for _ in split.prepared]
        for shard in sorted(split.owners):
            results = replies[shard].results
            for (number, fragment), result in zip(split.owners[shard], results, strict=True):
                answers[number].append((fragment, result))
        tensors: dict[str, Array] = {}
        for one, found in zip(split.prepared, answers, strict=True):
            tensors |= self._merged(one, found)
        return tensors

    def _prepared(self, one: AnyLookup, known: Mapping[str, Array]) -> AnyPrepared:
        table = self._tables[one.table]
        if isinstance(one, Scoring):
            return prepare_scores(one, table, known)
        prepared = prepare(one, table, known)
        if self._repeats is None:
            return prepared
        return self._repeats.asked_once(prepared, table, self._partitions[table.name].scatters)

    def _fragments(self, one: AnyPrepared, turn: int) -> Sequence[AnyFragment]:
        if isinstance(one, PreparedScores):
            return one.fragments(self._partitions[one.table.name], turn)
        return self._partitions[one.lookup.table].fragments(one.ids, one.bags, turn)

    def _merged(self, one: AnyPrepared, answers: list[tuple[Any, Array]]) -> dict[str, Array]:
        if isinstance(one, PreparedScores):
            return one.merged(answers, self._dtypes[one.table.name])
        table = self._tables[one.lookup.table]
        merge = merge_gathered if one.bags is None else merge_pooled
        merged = merge(table, one.count, answers)
        return {one.lookup.output: one.finished(merged, self._dtypes[table.name])}


def _request(asked: Sequence[tuple[int, AnyFragment]]) -> LookupRequest:
    fragments = [fragment for _, fragment in asked]
    return LookupRequest(
        tuple(one.part for one in fragments if isinstance(one, Fragment)),
        tuple(one.part for one in fragments if isinstance(one, ScoreFragment)),
    )


async def ask(
    split: SplitRound, channels: Sequence[ShardChannel], context: RequestContext
) -> dict[int, LookupReply]:
    """Send a round's requests and wait for all replies, or for the first error.

    Spends on `context` the slowest shard's own waiting and computing, and what is left as "wire";
    it is told of each shard.
    """
    started = time.monotonic()
    asked = [(channels[shard], request) for shard, request in split.requests.items()]
    replies = await fan_out(asked, context.deadline)
    elapsed = time.monotonic() - started
    slowest = max(
        replies, key=lambda r: r.queue_seconds + r.lookup_seconds, default=LookupReply(())
    )
    said = (
        Said(f"shard {shard}", reply.queue_seconds, reply.lookup_seconds)
        for shard, reply in zip(split.requests, replies, strict=True)
    )
    context.told(said, elapsed)
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
