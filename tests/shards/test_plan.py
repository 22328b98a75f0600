"""The planner: deterministic, balanced, within the memory it was given."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.layout import Sharding, TableLayout
from shardserve.shards.messages import Axis
from shardserve.shards.plan import Plan, PlanRequest, plan_layout, shard_loads
from shardserve.shards.row_counts import RowCounts
from shardserve.shards.rows import RowHash
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


@given(_tables(), st.integers(1, 8), st.integers(0, 99), st.none() | st.integers(1, 1 << 20))
def test_a_plan_from_row_counts_is_the_same_each_time(tables, shards, seed, memory):
    rng = np.random.default_rng(seed)
    counts = {
        name: RowCounts(rng.zipf(1.5, table.rows).clip(0, 10**6))
        for name, table in tables.items()
        if rng.random() < 0.8
    }

    def planned(names: list[str]) -> Plan | str:
        some = {name: counts[name] for name in names if name in counts}
        request = PlanRequest(shards, memory_per_shard=memory, row_counts=some)
        try:
            return plan_layout({name: tables[name] for name in names}, request)
        except InvalidArgument as error:
            return error.message

    assert planned(sorted(tables)) == planned(sorted(tables, reverse=True))


@given(st.integers(2, 8), st.lists(st.integers(1000, 100_000), min_size=1, max_size=20))
def test_no_shard_holds_much_more_than_an_even_share(shards, rows):
    tables = {f"t{i}": Table(f"t{i}", "float32", n, (32,)) for i, n in enumerate(rows)}
    loads = shard_loads(plan_layout(tables, PlanRequest(shards)).layout, tables, {})
    even = sum(t.nbytes for t in tables.values()) / shards
    rounding = sum(t.row_bytes for t in tables.values())
    assert max(load.nbytes for load in loads) <= 1.5 * even + rounding


@given(
    st.integers(2, 8),
    st.lists(st.tuples(st.integers(1000, 50_000), st.integers(0, 1000)), min_size=1, max_size=16),
)
def test_no_shard_has_much_more_than_an_even_share_of_the_bytes_or_of_those_read(shards, sizes):
    """Two and a half: a light table is half a share, and two kinds of load go into one number."""
    tables = {f"t{i}": Table(f"t{i}", "float32", rows, (32,)) for i, (rows, _) in enumerate(sizes)}
    counts = {f"t{i}": RowCounts(np.full(rows, each)) for i, (rows, each) in enumerate(sizes)}
    layout = plan_layout(tables, PlanRequest(shards, row_counts=counts)).layout
    loads = shard_loads(layout, tables, {}, counts)
    even = sum(t.nbytes for t in tables.values()) / shards
    assert max(load.nbytes for load in loads) <= 2.7 * even
    assert max(load.read or 0 for load in loads) <= 2.7 / shards


def _same_size(n: int) -> dict[str, Table]:
    return {f"t{i}": Table(f"t{i}", "float32", 1000, (16,)) for i in range(n)}


def _shards_of(table_layout: TableLayout) -> list[int]:
    return [piece.shard for piece in table_layout.slices]


def test_tables_that_are_read_often_are_kept_apart():
    tables = _same_size(8)
    hot = ["t0", "t2", "t4", "t6"]
    blind = plan_layout(tables, PlanRequest(2)).layout
    assert [_shards_of(blind.tables[name]) for name in hot] == [[0]] * 4

    counts = {name: RowCounts(np.full(1000, 100 if name in hot else 1)) for name in tables}
    plan = plan_layout(tables, PlanRequest(2, row_counts=counts))
    loads = shard_loads(plan.layout, tables, {}, counts)
    assert [load.read for load in loads] == [0.5, 0.5]
    assert len({load.nbytes for load in loads}) == 1
    assert plan.reasons["t2"] == (
        "whole, on the shard that was loaded least; 12.5% of the bytes, 24.8% of the bytes read"
    )
    assert plan.summary == (
        "tables of over 25.0%, half an even share, are divided; no shard has over 1.00 times an "
        "even share of the bytes, or 1.00 times one of the bytes read"
    )


def test_a_small_table_that_is_read_often_is_replicated():
    tables = {**_same_size(4), "small": Table("small", "float32", 10, (16,))}
    counts = {name: RowCounts(np.full(t.rows, 1)) for name, t in tables.items()}
    counts["small"] = RowCounts(np.array([10**6]), np.array([3]))
    plan = plan_layout(tables, PlanRequest(4, row_counts=counts))
    assert plan.layout.tables["small"].sharding is Sharding.REPLICATED
    assert plan.reasons["small"].startswith("replicated: small and read often; 0.2% of the bytes")


def test_a_table_with_a_hot_row_is_hashed_and_each_shard_has_a_copy_of_it():
    tables = {"emb": Table("emb", "float32", 1000, (8,))}
    counts = np.ones(1000, np.uint32)
    counts[17] = 9000
    plan = plan_layout(tables, PlanRequest(4, row_counts={"emb": RowCounts(counts)}))
    assert plan.layout.tables["emb"].sharding is Sharding.ROW_HASH
    assert plan.layout.tables["emb"].hot == (17,)
    reason = (
        r"row_hash over all shards, each with a copy of 1 hot row, the busiest of which gets "
        r"1.\d\d times an even share of its reads \(3.\d\d times by row_hash\)"
    )
    assert re.match(reason, plan.reasons["emb"])


@pytest.mark.parametrize(
    ("columns", "chosen", "reason"),
    [
        (64, "column", r"gets 1.00 times .* of its reads \(4.00 times by row_hash\)"),
        (8, "row_hash", r"gets 4.00 times an even share of its reads"),
    ],
)
def test_a_table_that_no_division_by_rows_makes_even_is_divided_by_columns_if_it_is_wide(
    columns, chosen, reason
):
    tables = {"emb": Table("emb", "float32", 10_000, (columns,))}
    hashed = RowHash(0, 4, 10_000)
    read = [row for row in hashed.rows(0, hashed.count).tolist() if row % 4 == 0 and row < 2500]
    counts = {"emb": RowCounts(np.ones(len(read), int), np.array(sorted(read)))}
    plan = plan_layout(tables, PlanRequest(4, row_counts=counts))
    assert plan.layout.tables["emb"].sharding == chosen
    assert re.search(reason, plan.reasons["emb"])


def test_a_table_that_is_not_counted_is_taken_as_unread_and_its_line_says_so():
    tables = _same_size(2)
    plan = plan_layout(tables, PlanRequest(1, row_counts={"t0": RowCounts(np.ones(1000, int))}))
    assert plan.reasons["t1"] == "whole: there is one shard; 50.0% of the bytes, no counts"


def test_counts_of_another_table_are_refused_naming_the_table():
    with pytest.raises(InvalidArgument, match=r"row counts: table 't0': 3 counts, .* 1000 rows"):
        plan_layout(_same_size(1), PlanRequest(1, row_counts={"t0": RowCounts(np.ones(3, int))}))


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


@pytest.mark.parametrize(
    ("axis", "form", "sharding"),
    [
        (Axis.ROWS, (10_000, 64), Sharding.ROW_RANGE),
        (Axis.COLUMNS, (2_000, 500), Sharding.COLUMN),
        (Axis.COLUMNS, (100_000, 3), Sharding.ROW_HASH),
    ],
)
def test_a_table_that_is_scored_is_cut_between_its_classes(axis, form, sharding):
    table = Table("t", "float32", form[0], form[1:])
    plan = plan_layout({"t": table}, PlanRequest(4), {"t": axis})
    assert plan.layout.tables["t"].sharding is sharding
    loads = [load.nbytes for load in shard_loads(plan.layout, {"t": table}, {})]
    assert max(loads) - min(loads) <= max(table.row_bytes, 4 * table.rows)
