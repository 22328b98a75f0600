"""Slices read from checkpoints that TensorFlow wrote."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import DataLoss, NotFound
from shardserve.shards import reads, row_files
from shardserve.shards.bundle import open_bundle
from shardserve.shards.layout import Slice
from shardserve.shards.loading import load_slice
from shardserve.shards.reads import Run, Scatter, plan_reads
from shardserve.shards.rows import HotRows, RowHash, RowMod, RowRange, RowSet
from shardserve.shards.tables import Extent, Table, TableSource
from tests.checkpoints import Array, is_open, numbered, save, save_boxes
from tests.shards.stores import dealt_out

ROWS, COLUMNS = 300, 12
TENSOR = numbered((ROWS, COLUMNS))


def grid(row_cuts: set[int], column_cuts: set[int]) -> list[tuple[slice, slice]]:
    rows, columns = [0, *sorted(row_cuts), ROWS], [0, *sorted(column_cuts), COLUMNS]
    return [
        (slice(*rows_of), slice(*columns_of))
        for rows_of in pairwise(rows)
        for columns_of in pairwise(columns)
    ]


@st.composite
def row_sets(draw: st.DrawFn) -> RowSet:
    parts = draw(st.integers(1, 5))
    part = draw(st.integers(0, parts - 1))
    start = draw(st.integers(0, ROWS))
    base = draw(
        st.sampled_from(
            [
                RowRange(start, draw(st.integers(start, ROWS))),
                RowMod(part, parts, ROWS),
                RowHash(part, parts, ROWS),
            ]
        )
    )
    hot = draw(st.just(()) | st.sets(st.integers(0, ROWS - 1), min_size=1, max_size=5))
    return HotRows(base, tuple(sorted(hot))) if hot else base


@st.composite
def pieces(draw: st.DrawFn) -> Slice:
    first = draw(st.sampled_from([0, 0, 1, 5]))
    last = draw(st.sampled_from([COLUMNS, COLUMNS, first + 1, 8]))
    return Slice("emb", 0, draw(row_sets()), first, last)


def expected(piece: Slice, tensor: Array = TENSOR) -> Array:
    rows = piece.rows.rows(0, piece.rows.count)
    return tensor[rows, piece.column_start : piece.column_stop]


@settings(max_examples=60, deadline=None)
@given(
    piece=pieces(),
    row_cuts=st.sets(st.integers(1, ROWS - 1), max_size=3),
    column_cuts=st.sets(st.integers(1, COLUMNS - 1), max_size=2),
)
def test_a_slice_has_its_elements_however_the_checkpoint_is_cut(
    piece, row_cuts, column_cuts, tmp_path_factory
):
    boxes = [("emb", TENSOR, box) for box in grid(row_cuts, column_cuts)]
    prefix = save_boxes(tmp_path_factory.mktemp("checkpoint") / "v", boxes)
    source = open_bundle(prefix).source("emb", "emb")

    loaded = load_slice(source, piece)

    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, expected(piece))


@settings(max_examples=60, deadline=None)
@given(piece=pieces(), parts=st.integers(1, 7), chunk=st.integers(1, 40))
def test_rows_that_lie_a_step_apart_come_to_their_places(piece, parts, chunk, tmp_path_factory):
    source = dealt_out(tmp_path_factory.mktemp("steps") / "data", TENSOR, parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reads, "SCATTER_ROWS", chunk)
        loaded = load_slice(source, piece)
    np.testing.assert_array_equal(loaded, expected(piece))


EXTENT = Extent("file", 1000, 0, ROWS, 0, COLUMNS)
SOURCE = TableSource(Table("emb", "float32", ROWS, (COLUMNS,)), (EXTENT,))


def bytes_read(read: Run | Scatter) -> list[int]:
    if isinstance(read, Run):
        return list(range(read.offset, read.offset + read.nbytes))
    starts = read.offset + read.rows * read.row_bytes
    return [byte for start in starts.tolist() for byte in range(start, start + read.length)]


@settings(max_examples=60, deadline=None)
@given(piece=pieces())
def test_only_the_slices_own_bytes_are_read_and_each_once(piece):
    columns = np.arange(piece.column_start * 4, piece.column_stop * 4)
    rows = piece.rows.rows(0, piece.rows.count)
    wanted = (1000 + rows[:, None] * COLUMNS * 4 + columns).ravel().tolist()
    planned = [byte for read in plan_reads(SOURCE, piece) for byte in bytes_read(read)]
    assert sorted(planned) == sorted(wanted)


def test_a_run_of_whole_rows_is_read_in_large_pieces(monkeypatch):
    monkeypatch.setattr(reads, "RUN_BYTES", 4096)
    planned = list(plan_reads(SOURCE, Slice("emb", 0, RowRange(10, ROWS), 0, COLUMNS)))
    assert [read.nbytes for read in planned] == [4096, 4096, 4096, 290 * 48 - 3 * 4096]
    assert [read.target for read in planned] == [0, 4096, 8192, 12288]


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "bool", "int64", "complex64"])
def test_any_dtype_keeps_its_bytes(dtype, tmp_path):
    tensor = numbered((20, 3), dtype)
    source = open_bundle(save(tmp_path / "v", {"emb": tensor})).source("emb", "emb")
    for rows in (RowRange(3, 20), RowMod(1, 3, 20)):
        piece = Slice("emb", 0, rows, 0, 3)
        np.testing.assert_array_equal(load_slice(source, piece), expected(piece, tensor))


@pytest.mark.parametrize("shape", [(40,), (40, 2, 3)])
def test_a_row_of_any_rank_is_flat(shape, tmp_path):
    tensor = numbered(shape)
    source = open_bundle(save(tmp_path / "v", {"emb": tensor})).source("emb", "emb")
    piece = Slice("emb", 0, RowMod(0, 2, 40), 0, source.table.columns)
    np.testing.assert_array_equal(load_slice(source, piece), tensor.reshape(40, -1)[::2])


def test_a_set_without_rows_gives_an_empty_slice(tmp_path):
    source = open_bundle(save(tmp_path / "v", {"emb": TENSOR})).source("emb", "emb")
    assert load_slice(source, Slice("emb", 0, RowRange(5, 5), 0, COLUMNS)).shape == (0, COLUMNS)


@pytest.mark.parametrize("rows", [RowRange(0, ROWS), RowHash(0, 2, ROWS)])
def test_progress_is_told_of_every_byte(rows, tmp_path):
    source = open_bundle(save(tmp_path / "v", {"emb": TENSOR})).source("emb", "emb")
    steps: list[int] = []
    loaded = load_slice(source, Slice("emb", 0, rows, 0, COLUMNS), steps.append)
    assert sum(steps) == loaded.nbytes


def test_progress_that_raises_ends_the_loading(tmp_path):
    source = open_bundle(save(tmp_path / "v", {"emb": TENSOR})).source("emb", "emb")

    def stop(_nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_slice(source, Slice("emb", 0, RowRange(0, ROWS), 0, COLUMNS), stop)


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[TableSource, Path]:
    source = open_bundle(save(tmp_path / "v", {"emb": TENSOR})).source("emb", "emb")
    return source, tmp_path / "v.data-00000-of-00001"


KINDS = [RowRange(0, ROWS), RowMod(1, 2, ROWS), RowHash(1, 2, ROWS)]


@settings(max_examples=40, deadline=None)
@given(piece=pieces(), dense=st.integers(0, 500), block=st.integers(48, 2000))
def test_rows_are_the_same_whether_read_one_by_one_or_picked_from_blocks(
    piece, dense, block, tmp_path_factory
):
    prefix = save(tmp_path_factory.mktemp("blocks") / "v", {"emb": TENSOR})
    source = open_bundle(prefix).source("emb", "emb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "DENSE_BYTES", dense)
        patch.setattr(row_files, "BLOCK_BYTES", block)
        loaded = load_slice(source, piece)
    np.testing.assert_array_equal(loaded, expected(piece))


@pytest.mark.parametrize("rows", KINDS)
def test_a_file_cut_off_since_the_index_was_read_is_refused(rows, checkpoint):
    source, path = checkpoint
    os.truncate(path, 5000)
    with pytest.raises(DataLoss, match="00001 is 5000 bytes, the table needs"):
        load_slice(source, Slice("emb", 0, rows, 0, COLUMNS))


@pytest.mark.parametrize("rows", KINDS)
def test_a_file_gone_since_the_index_was_read_is_not_found(rows, checkpoint):
    source, path = checkpoint
    path.unlink()
    with pytest.raises(NotFound, match="data-00000-of-00001"):
        load_slice(source, Slice("emb", 0, rows, 0, COLUMNS))


@pytest.mark.parametrize("rows", KINDS)
def test_a_file_that_cannot_be_read_is_refused(rows, checkpoint):
    source, path = checkpoint
    path.unlink()
    path.mkdir()
    with pytest.raises(DataLoss, match="data-00000-of-00001: cannot be read: Is a directory"):
        load_slice(source, Slice("emb", 0, rows, 0, COLUMNS))


def test_extents_that_lack_rows_are_refused(checkpoint):
    source, path = checkpoint
    half = TableSource(source.table, (Extent(str(path), 0, 0, 150, 0, COLUMNS),))
    with pytest.raises(DataLoss, match="holds 7200 bytes of the slice on shard 3, which has 14400"):
        load_slice(half, Slice("emb", 3, RowRange(0, ROWS), 0, COLUMNS))


def test_no_file_stays_open(checkpoint):
    source, path = checkpoint
    load_slice(source, Slice("emb", 0, RowRange(0, ROWS), 0, COLUMNS))
    assert not is_open(path)
    os.truncate(path, 5000)
    with pytest.raises(DataLoss):
        load_slice(source, Slice("emb", 0, RowRange(0, ROWS), 0, COLUMNS))
    assert not is_open(path)
