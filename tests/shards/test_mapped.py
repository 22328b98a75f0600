"""Rows that stay in the checkpoint's own files."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import DataLoss, NotFound
from shardserve.shards import memory
from shardserve.shards.bundle import open_bundle
from shardserve.shards.layout import Slice
from shardserve.shards.mapped import LEAST_ROWS, MappedStore
from shardserve.shards.row_cache import CacheCounts
from shardserve.shards.rows import RowHash, RowRange
from shardserve.shards.tables import Extent, Table, TableSource
from tests.checkpoints import is_open, numbered, save, save_boxes
from tests.shards.test_loading import COLUMNS, ROWS, TENSOR, expected, grid, pieces

WHOLE = Slice("emb", 0, RowRange(0, ROWS), 0, COLUMNS)


@settings(max_examples=40, deadline=None)
@given(
    piece=pieces(),
    row_cuts=st.sets(st.integers(1, ROWS - 1), max_size=3),
    column_cuts=st.sets(st.integers(1, COLUMNS - 1), max_size=2),
    cache_bytes=st.sampled_from([0, 2000]),
    seed=st.integers(0, 9),
)
def test_a_slice_answers_its_elements_however_the_checkpoint_is_cut(
    piece, row_cuts, column_cuts, cache_bytes, seed, tmp_path_factory
):
    boxes = [("emb", TENSOR, box) for box in grid(row_cuts, column_cuts)]
    prefix = save_boxes(tmp_path_factory.mktemp("checkpoint") / "v", boxes)
    store = MappedStore(open_bundle(prefix).source("emb", "emb"), piece, cache_bytes)
    held = expected(piece)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        rows = rng.integers(0, len(held), 50 if len(held) else 0)
        np.testing.assert_array_equal(store.gather(rows), held[rows])


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[TableSource, Path]:
    source = open_bundle(save(tmp_path / "v", {"emb": TENSOR})).source("emb", "emb")
    return source, tmp_path / "v.data-00000-of-00001"


def test_a_file_that_is_too_short_is_refused_before_anything_is_asked(checkpoint):
    source, path = checkpoint
    os.truncate(path, 5000)
    with pytest.raises(DataLoss, match="00001 is 5000 bytes, the table needs 14400"):
        MappedStore(source, WHOLE)


def test_a_file_that_is_gone_is_not_found(checkpoint):
    source, path = checkpoint
    path.unlink()
    with pytest.raises(NotFound, match="data-00000-of-00001"):
        MappedStore(source, WHOLE)


def test_a_file_cut_off_under_the_store_is_an_error_of_what_lies_behind_the_cut(checkpoint):
    source, path = checkpoint
    store = MappedStore(source, WHOLE)
    os.truncate(path, 5000)
    np.testing.assert_array_equal(store.gather(np.array([3])), TENSOR[[3]])
    with pytest.raises(DataLoss, match="00001 is 5000 bytes, the table needs 14400"):
        store.gather(np.array([3, 299]))


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(checkpoint):
    source, path = checkpoint
    path.unlink()
    path.mkdir()
    with pytest.raises(DataLoss, match="data-00000-of-00001"):
        MappedStore(source, WHOLE).gather(np.array([0]))


def test_extents_that_lack_rows_are_refused(checkpoint):
    source, path = checkpoint
    half = TableSource(source.table, (Extent(str(path), 0, 0, 150, 0, COLUMNS),))
    with pytest.raises(DataLoss, match="'emb': the checkpoint holds 7200 bytes of it, it has"):
        MappedStore(half, WHOLE)


def test_its_files_are_open_as_long_as_it_is(checkpoint):
    source, path = checkpoint
    store = MappedStore(source, WHOLE)
    assert is_open(path)
    del store
    gc.collect()
    assert not is_open(path)
    os.truncate(path, 5000)
    with pytest.raises(DataLoss):
        MappedStore(source, WHOLE)
    gc.collect()
    assert not is_open(path)


@pytest.mark.parametrize("cache_bytes", [0, 2000])
@pytest.mark.parametrize("different", [3, ROWS])
def test_rows_that_are_repeated_often_are_the_same_rows(checkpoint, cache_bytes, different):
    store = MappedStore(checkpoint[0], WHOLE, cache_bytes)
    rows = np.random.default_rng(0).integers(0, different, 4 * LEAST_ROWS)
    np.testing.assert_array_equal(store.gather(rows), TENSOR[rows])
    summed = store.pool(rows, np.arange(0, len(rows) + 1, 4), None)
    one_by_one = [store.pool(rows[i : i + 4], np.array([0, 4]), None)[0] for i in range(0, 400, 4)]
    np.testing.assert_array_equal(summed[:100], one_by_one)


def test_a_terabyte_of_holes_opens_at_once_and_takes_no_memory(tmp_path):
    rows, columns = 1_000_000_000, 512
    path = tmp_path / "data"
    planted = numbered((3, columns), np.float16)
    numbers = [5, 123_456_789, rows - 3]
    with path.open("wb") as file:
        for number, row in zip(numbers, planted, strict=True):
            os.pwrite(file.fileno(), row.tobytes(), 4096 + number * columns * 2)
        os.truncate(file.fileno(), 4096 + rows * columns * 2)
    table = Table("items", "float16", rows, (columns,))
    source = TableSource(table, (Extent(str(path), 4096, 0, rows, 0, columns),))
    part, local = divmod_by_hash(numbers, rows, 8)
    before = memory.current_rss_bytes()
    for number, row, shard, place in zip(numbers, planted, part, local, strict=True):
        store = MappedStore(source, Slice("items", 0, RowHash(shard, 8, rows), 0, columns))
        assert store.nbytes == 125_000_000 * 1024
        answer = store.gather(np.array([place, (place + 1) % store.rows]))
        np.testing.assert_array_equal(answer, [row, np.zeros(columns)], err_msg=str(number))
    assert memory.current_rss_bytes() - before < 8 << 20


def divmod_by_hash(numbers: list[int], total: int, parts: int) -> tuple[list[int], list[int]]:
    """The shard and the local number of each row of a table that is sharded by hash."""
    from shardserve.shards.rows import hash_multiplier

    places = [number * hash_multiplier(total) % total for number in numbers]
    return [place % parts for place in places], [place // parts for place in places]


# The cache of hot rows.

ROW = COLUMNS * 4


def test_rows_asked_for_again_are_found_in_the_cache(checkpoint):
    store = MappedStore(checkpoint[0], WHOLE, cache_bytes=1 << 20)
    rows = np.array([4, 9, 200])
    store.gather(rows)
    assert store.cache_counts == CacheCounts(0, 3)
    np.testing.assert_array_equal(store.gather(rows), TENSOR[rows])
    assert store.cache_counts == CacheCounts(3, 3)
    store.pool(rows, np.array([0, 3]), None)
    assert store.cache_counts == CacheCounts(6, 3)


def test_what_is_in_the_cache_needs_no_file(checkpoint):
    source, path = checkpoint
    store = MappedStore(source, WHOLE, cache_bytes=1 << 20)
    store.gather(np.array([250]))
    os.truncate(path, 0)
    np.testing.assert_array_equal(store.gather(np.array([250])), TENSOR[[250]])


def test_a_hot_row_is_not_driven_out_by_rows_that_are_asked_for_once(checkpoint):
    places = 30
    store = MappedStore(checkpoint[0], WHOLE, cache_bytes=places * (ROW + 9))
    hot = np.array([7])
    for _ in range(20):
        store.gather(hot)
    store.gather(np.arange(ROWS))
    before = store.cache_counts
    store.gather(hot)
    assert store.cache_counts == before + CacheCounts(1, 0)


def test_rows_that_have_become_hot_take_the_place_of_those_that_were(checkpoint):
    store = MappedStore(checkpoint[0], WHOLE, cache_bytes=30 * (ROW + 9))
    for row in (7, 37):
        for _ in range(20):
            store.gather(np.array([row]))
    before = store.cache_counts
    store.gather(np.array([37]))
    assert store.cache_counts == before + CacheCounts(1, 0)


def test_a_budget_for_less_than_a_row_holds_nothing(checkpoint):
    store = MappedStore(checkpoint[0], WHOLE, cache_bytes=10)
    for _ in range(2):
        np.testing.assert_array_equal(store.gather(np.array([5, 5])), TENSOR[[5, 5]])
    assert store.cache_counts == CacheCounts(0, 4)


def test_without_a_budget_nothing_is_counted(checkpoint):
    store = MappedStore(checkpoint[0], WHOLE)
    store.gather(np.array([5]))
    assert store.cache_counts == CacheCounts()
