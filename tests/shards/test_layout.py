"""Layouts: each element exactly once, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument
from shardserve.shards import layout as layouts
from shardserve.shards.layout import Layout, Sharding, TableLayout
from shardserve.shards.rows import RowHash, RowMod, RowRange, RowSet, hash_multiplier
from shardserve.shards.tables import Table
from tests.layouts import LAYOUTS, random_grid, random_layout

TABLE = Table("emb", "float32", 10, (4,))


def held(layout: Layout, table: Table) -> np.ndarray:
    """How many shards hold each element."""
    counts = np.zeros((table.rows, table.columns), int)
    for shard in range(layout.shards):
        for piece in layout.slices_of_shard(shard):
            rows = piece.rows.rows(0, piece.rows.count)
            np.add.at(counts[:, piece.column_start : piece.column_stop], rows, 1)
    return counts


@given(st.data(), st.integers(1, 40), st.integers(1, 9), st.integers(1, 5))
def test_every_sharding_holds_each_element_exactly_once(data, rows, columns, shards):
    table = Table("emb", "float32", rows, (columns,))
    layout = data.draw(random_layout({"emb": table}, shards))
    layouts.check(layout, {"emb": table})
    table_layout = layout.tables["emb"]
    replicated = table_layout.sharding is Sharding.REPLICATED
    expected = np.full((rows, columns), len(table_layout.slices) if replicated else 1)
    expected[list(table_layout.hot)] += len(table_layout.slices)
    assert (held(layout, table) == expected).all()


@given(st.integers(1, 10_000), st.integers(1, 7))
def test_hashed_rows_are_a_permutation_of_all_rows(total, parts):
    found = [
        RowHash(part, parts, total).rows(0, RowHash(part, parts, total).count)
        for part in range(parts)
    ]
    assert sorted(np.concatenate(found).tolist()) == list(range(total))


@given(st.integers(1, 1 << 32))
def test_the_hash_multiplier_is_coprime_and_its_products_fit(total):
    multiplier = hash_multiplier(total)
    assert np.gcd(multiplier, total) == 1
    assert (total - 1) * multiplier < 1 << 63


@given(st.integers(1 << 31, 1 << 32), st.integers(0, 3), st.integers(0, (1 << 29) - 4))
def test_hashed_rows_of_huge_tables_come_back_from_their_places(total, part, local):
    rows = RowHash(part, 4, total).rows(local, local + 3)
    places = [int(row) * hash_multiplier(total) % total for row in rows]
    assert places == [part + 4 * (local + i) for i in range(3)]


@pytest.mark.parametrize("rows", [RowRange(3, 9), RowMod(1, 3, 10), RowHash(2, 3, 10)])
def test_a_run_of_local_rows_is_part_of_all_of_them(rows: RowSet):
    whole = rows.rows(0, rows.count)
    assert rows.rows(1, 3).tolist() == whole[1:3].tolist()


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_shards_slices_are_numbered_by_table_then_part(kind):
    tables = {name: Table(name, "float32", 10, (4,)) for name in ("b", "a")}
    layout = Layout(2, 1, {name: LAYOUTS[kind](table, 2) for name, table in tables.items()})
    for shard in range(2):
        names = [piece.table for piece in layout.slices_of_shard(shard)]
        assert names == sorted(names)


def _grid(*bands: tuple[int, int, list[int]]) -> TableLayout:
    return layouts.grid((start, stop, layouts.row_mod(TABLE, on)) for start, stop, on in bands)


@pytest.mark.parametrize(
    ("table_layout", "words"),
    [
        (layouts.row_range(TABLE, [(0, 0, 4), (1, 5, 10)]), r"rows \[4, 5\) lie on no slice"),
        (layouts.row_range(TABLE, [(0, 0, 6), (1, 5, 10)]), r"rows \[5, 6\) lie on two slices"),
        (layouts.row_range(TABLE, [(0, 0, 5), (1, 5, 9)]), r"rows \[9, 10\) lie on no slice"),
        (layouts.row_range(TABLE, [(0, 0, 11)]), "there are 10 rows, the layout goes to 11"),
        (layouts.row_range(TABLE, [(0, 0, 10), (1, 10, 10)]), r"rows \[10, 10\) are empty"),
        (layouts.row_range(TABLE, [(0, 0, 5), (0, 5, 10)]), "shard 0 is named twice"),
        (layouts.row_range(TABLE, [(0, 0, 5), (2, 5, 10)]), r"shard 2 is not in \[0, 2\)"),
        (layouts.column(TABLE, [(0, 0, 1), (1, 2, 4)]), r"columns \[1, 2\) lie on no slice"),
        (layouts.row_mod(TABLE, []), "has no slices"),
        (_grid((0, 2, [0]), (2, 3, [1])), r"columns \[3, 4\) lie on no slice"),
        (_grid((0, 2, [0]), (1, 4, [1])), r"columns \[1, 2\) lie on two slices"),
        (_grid((0, 2, [0]), (2, 4, [0])), "shard 0 is named twice"),
        (_grid((0, 2, [0]), (2, 5, [1])), "there are 4 columns, the layout goes to 5"),
        (
            layouts.grid([(0, 4, layouts.row_range(TABLE, [(0, 0, 4), (1, 5, 10)]))]),
            r"columns \[0, 4\): rows \[4, 5\) lie on no slice",
        ),
        (
            TableLayout(Sharding.ROW_MOD, layouts.row_mod(TABLE, [0, 1, 2]).slices[:2]),
            "the slices are not the parts of row_mod",
        ),
        (layouts.with_hot_rows(layouts.row_mod(TABLE, [0, 1]), [3, 10]), r"hot row 10 is not in"),
        (layouts.with_hot_rows(layouts.row_mod(TABLE, [0, 1]), [-1]), r"hot row -1 is not in"),
        (layouts.with_hot_rows(layouts.row_mod(TABLE, [0, 1]), [3, 3]), "hot row 3 is named twice"),
        (layouts.with_hot_rows(_grid((0, 4, [0, 1])), [3]), "sharding 'grid' takes no hot rows"),
        (layouts.with_hot_rows(layouts.whole_table(TABLE, 0), [3]), "'table' takes no hot rows"),
        (TableLayout(Sharding.TABLE, layouts.replicated(TABLE, [0, 1]).slices), "takes one shard"),
    ],
)
def test_a_layout_that_cannot_answer_is_refused_naming_the_table(table_layout, words):
    with pytest.raises(InvalidArgument, match=words) as caught:
        layouts.check(Layout(2, 1, {"emb": table_layout}), {"emb": TABLE})
    assert "'emb'" in caught.value.message


@given(st.data(), st.integers(1, 40), st.integers(1, 9), st.integers(1, 6))
def test_a_grid_is_made_of_its_bands(data, rows, columns, shards):
    table = Table("emb", "float32", rows, (columns,))
    table_layout = data.draw(random_grid(table, list(range(shards))))
    bands = table_layout.bands()
    edges = [(band.slices[0].column_start, band.slices[0].column_stop) for band in bands]
    assert {band.sharding for band in bands} <= set(layouts.ROW_SHARDINGS.values())
    assert (
        layouts.grid((*edge, band) for edge, band in zip(edges, bands, strict=True)) == table_layout
    )


def test_an_unknown_table_is_named_with_those_there_are():
    layout = Layout(1, 1, {"nope": layouts.whole_table(TABLE, 0)})
    with pytest.raises(InvalidArgument, match=r"table 'nope' is not in the model.*: emb"):
        layouts.check(layout, {"emb": TABLE})


def test_a_shard_over_its_memory_is_named():
    layout = Layout(2, 1, {"emb": layouts.row_range(TABLE, [(0, 0, 2), (1, 2, 10)])})
    layouts.check_memory(layout, {"emb": TABLE}, 128)
    with pytest.raises(InvalidArgument, match="shard 1 holds 128 bytes, its memory is 127 bytes"):
        layouts.check_memory(layout, {"emb": TABLE}, 127)
