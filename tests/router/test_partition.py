"""merge(answers(split(lookup))) is the lookup on the whole table, under every layout."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardserve.router.merge import divided, merge_gathered, merge_pooled
from shardserve.router.partition import Bags, Fragment, TablePartition, partitions_of
from shardserve.shards import layout as layouts
from shardserve.shards.cut.lookups import Combiner
from shardserve.shards.layout import Layout
from shardserve.shards.messages import Op
from shardserve.shards.tables import Table
from tests.layouts import random_layout


def answer(layout: Layout, values: np.ndarray, fragment: Fragment) -> np.ndarray:
    """What `Part` says a shard answers, in plain numpy."""
    part = fragment.part
    piece = layout.slices_of_shard(fragment.shard)[part.slice_id]
    held = values[piece.rows.rows(0, piece.rows.count), piece.column_start : piece.column_stop]
    rows = held[part.rows]
    if part.op is Op.GATHER:
        return rows
    assert part.offsets is not None
    assert part.offsets[0] == 0
    assert part.offsets[-1] == len(part.rows)
    weights = np.ones(len(rows)) if part.weights is None else part.weights
    sums = [
        (rows[a:b] * weights[a:b, None]).sum(axis=0)
        for a, b in zip(part.offsets[:-1], part.offsets[1:], strict=True)
    ]
    return np.array(sums, values.dtype).reshape(-1, rows.shape[1])


@st.composite
def _problem(draw: st.DrawFn):
    table = Table("emb", "float64", draw(st.integers(1, 30)), (draw(st.integers(1, 6)),))
    shards = draw(st.integers(1, 4))
    layout = draw(random_layout({"emb": table}, shards))
    ids = np.array(draw(st.lists(st.integers(0, table.rows - 1), max_size=24)), np.int64)
    values = np.arange(table.rows * table.columns, dtype=np.float64)
    return (
        table,
        layout,
        ids,
        values.reshape(table.rows, table.columns) + 1,
        draw(st.integers(0, 9)),
    )


@given(_problem())
def test_gathered_rows_come_back_in_the_order_of_the_ids(problem):
    table, layout, ids, values, turn = problem
    fragments = partitions_of(layout, {"emb": table})["emb"].fragments(ids, None, turn)
    merged = merge_gathered(table, len(ids), [(f, answer(layout, values, f)) for f in fragments])
    assert merged.tolist() == values[ids].tolist()


@given(_problem(), st.data())
def test_pooled_bags_are_the_sums_of_their_rows_empty_ones_zero(problem, data):
    table, layout, ids, values, turn = problem
    count = data.draw(st.integers(1, 8))
    of_id = np.sort(
        np.array(
            data.draw(st.lists(st.integers(0, count - 1), min_size=len(ids), max_size=len(ids))),
            np.int32,
        )
    )
    weights = None
    if data.draw(st.booleans()):
        weights = np.arange(1, len(ids) + 1, dtype=np.float64) / 4
    bags = Bags(of_id, count, weights)
    fragments = partitions_of(layout, {"emb": table})["emb"].fragments(ids, bags, turn)
    merged = merge_pooled(table, count, [(f, answer(layout, values, f)) for f in fragments])
    expected = np.zeros((count, table.columns))
    np.add.at(expected, of_id, values[ids] * (1 if weights is None else weights[:, None]))
    assert merged.tolist() == expected.tolist()


@given(_problem())
def test_each_id_is_asked_of_one_shard_for_each_column(problem):
    table, layout, ids, _, turn = problem
    fragments = partitions_of(layout, {"emb": table})["emb"].fragments(ids, None, turn)
    asked = sum(len(f.part.rows) * (f.column_stop - f.column_start) for f in fragments)
    assert asked == len(ids) * table.columns
    assert len({f.shard for f in fragments}) == len(fragments)


@given(_problem())
def test_hot_ids_are_asked_of_no_shard_that_would_not_be_asked_anyway(problem):
    table, layout, ids, _, turn = problem
    table_layout = layout.tables["emb"]
    partition = partitions_of(layout, {"emb": table})["emb"]
    asked = {f.shard for f in partition.fragments(ids, None, turn)}
    cold = ids[~np.isin(ids, table_layout.hot)]
    if len(cold):
        assert asked == {f.shard for f in partition.fragments(cold, None, turn)}
    elif len(ids):
        assert len(asked) == len({piece.column_start for piece in table_layout.slices})


def _with_a_hot_row() -> TablePartition:
    table = Table("emb", "float32", 8, (1,))
    table_layout = layouts.with_hot_rows(layouts.row_mod(table, [0, 1]), [0])
    return partitions_of(Layout(2, 1, {"emb": table_layout}), {"emb": table})["emb"]


def test_hot_ids_go_to_the_shard_with_the_fewest_rows():
    fragments = _with_a_hot_row().fragments(np.array([2, 0, 4, 6, 1, 0, 0]), None, 0)
    assert [(f.shard, f.part.rows.tolist()) for f in fragments] == [
        (0, [1, 2, 3, 4]),
        (1, [4, 0, 4]),
    ]


def test_a_bags_hot_ids_go_to_one_shard():
    bags = Bags(np.array([0, 0, 0, 1, 1, 1], np.int32), 2, None)
    fragments = _with_a_hot_row().fragments(np.array([2, 1, 0, 0, 0, 0]), bags, 0)
    assert [(f.shard, f.part.rows.tolist(), f.places.tolist()) for f in fragments] == [
        (0, [1, 4], [0]),
        (1, [0, 4, 4, 4], [0, 1]),
    ]


def test_a_lookup_of_hot_ids_alone_goes_to_one_shard_and_to_each_in_turn():
    partition = _with_a_hot_row()
    found = [partition.fragments(np.zeros(3, np.int64), None, turn) for turn in range(4)]
    assert [[f.shard for f in fragments] for fragments in found] == [[0], [1], [0], [1]]


def test_mean_and_sqrtn_divide_by_the_bags_sizes_and_leave_empty_bags_zero():
    sums = np.array([[8.0], [0.0], [6.0]])
    sizes = np.array([4, 0, 1])
    assert divided(sums, sizes, Combiner.MEAN).tolist() == [[2.0], [0.0], [6.0]]
    assert divided(sums, sizes, Combiner.SQRTN).tolist() == [[4.0], [0.0], [6.0]]
    assert divided(sums, sizes, Combiner.SUM).tolist() == sums.tolist()


def test_a_mean_over_an_axis_without_elements_is_nan_as_in_tensorflow():
    assert np.isnan(divided(np.zeros((2, 3)), 0, Combiner.MEAN)).all()
