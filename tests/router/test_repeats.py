"""Asking for repeated ids once changes what is asked, and no bit of what is answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument
from shardserve.router.repeats import LEAST_BYTES, NEVER, Repeats, least_repeats
from shardserve.router.rounds import Fanout
from shardserve.shards import layout as layouts
from shardserve.shards.cut.lookups import Lookup, Motif
from shardserve.shards.layout import Layout
from shardserve.shards.messages import LookupReply, LookupRequest
from shardserve.shards.shard import Shard
from shardserve.shards.store import HostStore
from shardserve.shards.tables import Table
from tests.layouts import random_layout

GATHER = Lookup("rows:0", "emb", "gather", Motif.GATHER, "ids:0")
POOL = Lookup("sums:0", "emb", "pool", Motif.REDUCE_POOL, "ids:0")
ALWAYS = Repeats(lambda ids, row_bytes, scattered: 0.0)


def shards_of(layout: Layout, values: np.ndarray) -> list[Shard]:
    return [
        Shard(
            [
                HostStore(
                    np.ascontiguousarray(
                        values[
                            piece.rows.rows(0, piece.rows.count),
                            piece.column_start : piece.column_stop,
                        ]
                    )
                )
                for piece in layout.slices_of_shard(shard)
            ]
        )
        for shard in range(layout.shards)
    ]


def looked_up(
    fanout: Fanout, shards: list[Shard], lookup: Lookup, ids: np.ndarray
) -> tuple[np.ndarray, dict[int, LookupRequest]]:
    split = fanout.split([lookup], {"ids:0": ids})
    replies = {s: LookupReply(shards[s].execute(asked)) for s, asked in split.requests.items()}
    return fanout.merge(split, replies)[lookup.output], dict(split.requests)


def rows_asked(requests: dict[int, LookupRequest]) -> int:
    return sum(part.rows.size for asked in requests.values() for part in asked.parts)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Table, Layout, np.ndarray, np.ndarray]:
    dtype = draw(st.sampled_from(["float32", "float64", "float16", "int64"]))
    table = Table("emb", dtype, draw(st.integers(1, 30)), (draw(st.integers(1, 6)),))
    layout = draw(random_layout({"emb": table}, draw(st.integers(1, 4))))
    shape = draw(st.sampled_from([(0,), (1,), (7,), (3, 4), (2, 3, 5)]))
    ids = np.array(
        draw(
            st.lists(
                st.integers(0, table.rows - 1),
                min_size=int(np.prod(shape)),
                max_size=int(np.prod(shape)),
            )
        ),
        np.int64,
    ).reshape(shape)
    values = np.random.default_rng(0).integers(0, 999, (table.rows, table.columns)).astype(dtype)
    return table, layout, ids, values


@settings(max_examples=100, deadline=None)
@given(problems())
def test_a_gathers_answer_is_the_same_to_the_bit(problem):
    table, layout, ids, values = problem
    shards, tables = shards_of(layout, values), {"emb": table}
    expected, each = looked_up(Fanout(layout, tables), shards, GATHER, ids)
    found, once = looked_up(Fanout(layout, tables, ALWAYS), shards, GATHER, ids)
    assert found.shape == (*ids.shape, *table.row_shape)
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes() == values[ids].tobytes()
    assert rows_asked(once) * max(1, ids.size) == rows_asked(each) * len(np.unique(ids))


@settings(max_examples=50, deadline=None)
@given(problems())
def test_pooled_lookups_are_left_alone(problem):
    table, layout, ids, values = problem
    if table.dtype not in ("float32", "float64"):
        return
    shards, tables = shards_of(layout, values), {"emb": table}
    expected, each = looked_up(Fanout(layout, tables), shards, POOL, ids)
    found, same = looked_up(Fanout(layout, tables, ALWAYS), shards, POOL, ids)
    assert found.tobytes() == expected.tobytes()
    assert rows_asked(same) == rows_asked(each)


def test_a_bad_id_is_named_where_it_stands_among_all():
    table = Table("emb", "float32", 4, (2,))
    layout = _one_shard(table)
    with pytest.raises(InvalidArgument, match=r"indices\[3\] = 9 is not in \[0, 4\)"):
        Fanout(layout, {"emb": table}, ALWAYS).split([GATHER], {"ids:0": np.array([1, 1, 1, 9])})


def test_the_first_ids_tell_whether_it_pays():
    table = Table("emb", "float32", 1 << 20, (64,))
    layout = _one_shard(table)
    fanout = Fanout(layout, {"emb": table}, Repeats())
    rng = np.random.default_rng(0)
    assert _asked(fanout, rng.integers(0, 50, 4096)) == 50
    assert _asked(fanout, rng.integers(0, 1 << 20, 4096)) == 4096
    assert _asked(fanout, rng.integers(0, 50, 512)) == 512


@given(ids=st.integers(0, 1 << 24), row_bytes=st.integers(1, 1 << 12), scattered=st.booleans())
def test_the_rule_leaves_small_lookups_alone_and_asks_less_of_scattered_ones(
    ids, row_bytes, scattered
):
    least = least_repeats(ids, row_bytes, scattered)
    assert (least == NEVER) == (ids * row_bytes < LEAST_BYTES)
    assert least_repeats(ids, row_bytes, True) <= least_repeats(ids, row_bytes, False)


def _one_shard(table: Table) -> Layout:
    return Layout(1, 1, {table.name: layouts.row_mod(table, [0])})


def _asked(fanout: Fanout, ids: Any) -> int:
    return rows_asked(dict(fanout.split([GATHER], {"ids:0": ids}).requests))
