"""The planner: deterministic, balanced, within the memory it was given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.layout import Sharding
from shardserve.shards.plan import PlanRequest, plan_layout, shard_loads
from shardserve.shards.storage import Precision, Storage, Tier
from shardserve.shards.tables import Table
from tests.layouts import random_layout


@st.composite
def _tables(draw: st.DrawFn) -> dict[str, Table]:
    sizes = draw(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 64)), max_size=12))
    return {
        f"t{i}": Table(f"t{i}", "float32", rows, (columns,))
        for i, (rows, columns) in enumerate(sizes)
    }


@given(_tables(), st.integers(1, 8))
def test_a_plan_holds_every_table_and_is_the_same_each_time(tables, shards):
    request = PlanRequest(shards, replicas=2)
    plan = plan_layout(tables, request)
    assert plan.layout.tables.keys() == plan.reasons.keys() == tables.keys()
    assert plan.layout.replicas == 2
    shuffled = dict(sorted(tables.items(), reverse=True))
    assert plan_layout(shuffled, request) == plan


@given(st.integers(2, 8), st.lists(st.integers(1000, 100_000), min_size=1, max_size=20))
def test_no_shard_holds_much_more_than_an_even_share(shards, rows):
    tables = {f"t{i}": Table(f"t{i}", "float32", n, (32,)) for i, n in enumerate(rows)}
    loads = shard_loads(plan_layout(tables, PlanRequest(shards)).layout, tables, {})
    even = sum(t.nbytes for t in tables.values()) / shards
    rounding = sum(t.row_bytes for t in tables.values())
    assert max(load.nbytes for load in loads) <= 1.5 * even + rounding


@given(_tables(), st.integers(1, 6), st.integers(1, 1 << 20))
def test_a_plan_fits_the_memory_or_is_refused_naming_a_shard(tables, shards, memory):
    request = PlanRequest(shards, memory_per_shard=memory)
    if sum(table.nbytes for table in tables.values()) > memory * shards:
        with pytest.raises(InvalidArgument, match=rf"shard \d .* its memory is {memory} bytes"):
            plan_layout(tables, request)
        return
    try:
        plan = plan_layout(tables, request)
    except InvalidArgument:
        return
    assert all(load.nbytes <= memory for load in shard_loads(plan.layout, tables, {}))


@given(_tables(), st.integers(1, 6))
def test_all_row_wise_and_whole_lookups_are_counted_once(tables, shards):
    layout = plan_layout(tables, PlanRequest(shards)).layout
    loads = shard_loads(layout, tables, dict.fromkeys(tables, 3))
    columns = sum(
        len(one.slices) if one.sharding is Sharding.COLUMN else 1 for one in layout.tables.values()
    )
    assert sum(load.lookups for load in loads) == pytest.approx(3 * columns)


@given(st.data(), st.integers(1, 40), st.integers(1, 9), st.integers(1, 6))
def test_each_run_of_columns_is_asked_for_all_lookups_under_any_layout(data, rows, columns, shards):
    tables = {"emb": Table("emb", "float32", rows, (columns,))}
    layout = data.draw(random_layout(tables, shards))
    runs = {(s.column_start, s.column_stop) for s in layout.tables["emb"].slices}
    loads = shard_loads(layout, tables, {"emb": 3})
    assert sum(load.lookups for load in loads) == pytest.approx(3 * len(runs))


def test_a_large_table_is_cut_by_rows_a_small_one_goes_where_there_is_room():
    tables = {
        "big": Table("big", "float32", 100_000, (16,)),
        "mid": Table("mid", "float32", 10_000, (16,)),
        "few_rows": Table("few_rows", "float32", 10, (200_000,)),
    }
    layout = plan_layout(tables, PlanRequest(2)).layout
    assert layout.tables["big"].sharding is Sharding.ROW_HASH
    assert layout.tables["few_rows"].sharding is Sharding.COLUMN
    assert [piece.shard for piece in layout.tables["mid"].slices] == [0]


@given(_tables(), st.integers(1, 6), st.sampled_from(Precision))
def test_a_plan_keeps_tables_at_the_precision_and_counts_so(tables, shards, precision):
    tables = {**tables, "ids": Table("ids", "int64", 10, (1,))}
    layout = plan_layout(tables, PlanRequest(shards, storage=Storage(precision=precision))).layout
    assert layout.tables["ids"].storage.precision is Precision.AS_SAVED
    kept = sum(load.nbytes for load in shard_loads(layout, tables, {}))
    assert kept >= sum(
        table.rows * Storage(precision=precision).row_bytes(table, table.columns)
        for name, table in tables.items()
        if name != "ids"
    )


def test_tables_that_are_mapped_fit_any_memory_and_are_spread_all_the_same():
    tables = {"big": Table("big", "float32", 1 << 30, (64,))}
    request = PlanRequest(4, memory_per_shard=1 << 20, storage=Storage(Tier.MAPPED))
    layout = plan_layout(tables, request).layout
    assert layout.tables["big"].sharding is Sharding.ROW_HASH
    assert layout.tables["big"].storage == Storage(Tier.MAPPED)


def test_a_tier_that_keeps_rows_as_saved_takes_no_precision():
    storage = Storage(Tier.MAPPED, Precision.INT8)
    with pytest.raises(InvalidArgument, match=r"'mapped' .* not at precision 'int8'"):
        plan_layout({}, PlanRequest(1, storage=storage))


def test_no_shards_are_refused():
    with pytest.raises(InvalidArgument, match="shards must be at least 1"):
        plan_layout({}, PlanRequest(0))
