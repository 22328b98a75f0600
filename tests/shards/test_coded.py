"""Rows of float32 that are kept at a lower precision: the error, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shardserve.batching.errors import InvalidArgument
from shardserve.shards import loading, memory
from shardserve.shards.bundle import open_bundle
from shardserve.shards.coded import CodedStore
from shardserve.shards.encoding import encode
from shardserve.shards.layout import Slice
from shardserve.shards.loading import load_coded
from shardserve.shards.rows import RowHash, RowMod, RowRange
from shardserve.shards.storage import Precision, Storage, coded_row_bytes
from tests.checkpoints import save, save_boxes
from tests.shards.test_kernels import summed
from tests.shards.test_loading import COLUMNS, ROWS, grid, row_sets

PRECISIONS = [Precision.FLOAT16, Precision.BFLOAT16, Precision.INT8, Precision.INT4]
#: Widths with a kernel of their own, and others, odd ones and ones below a block among them.
WIDTHS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 100, 128, 129, 600]
LARGEST = {Precision.FLOAT16: 65504.0, Precision.BFLOAT16: float(np.float32(3.3895e38))}


def store_of(table: np.ndarray, precision: Precision) -> CodedStore:
    coded, fits = encode(precision, table)
    assert fits.all()
    return CodedStore(coded, precision, table.shape[1])


def bound(precision: Precision, table: np.ndarray) -> np.ndarray:
    """What `docs/layouts.md` says that the error is at most."""
    exact = np.abs(table.astype(np.float64))
    peaks = exact.max(axis=1, keepdims=True)
    match precision:
        case Precision.FLOAT16:
            return np.maximum(exact * 2.0**-11, 2.0**-25)
        case Precision.BFLOAT16:
            return np.maximum(exact * 2.0**-8, 2.0**-134)
        case Precision.INT8:
            return np.maximum(peaks / 254, 2.0**-127) + peaks * 2.0**-22
        case _:
            return np.maximum(peaks / 14, 2.0**-127) + peaks * 2.0**-22


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """Rows of any finite elements, and of every size: from the least of all to the largest."""
    columns = draw(st.sampled_from(WIDTHS[:8]))
    rows = draw(st.integers(1, 6))
    limit = draw(st.sampled_from([2.0**-140, 2.0**-120, 2.0**-24, 1.0, 60000.0]))
    elements = st.floats(-limit, limit, width=32)
    return draw(arrays.arrays(np.float32, (rows, columns), elements=elements))


@settings(max_examples=150, deadline=None)
@given(table=tables(), precision=st.sampled_from(PRECISIONS))
def test_the_error_is_within_its_bound(table, precision):
    answer = store_of(table, precision).gather(np.arange(len(table)))
    assert answer.dtype == np.float32
    error = np.abs(answer.astype(np.float64) - table.astype(np.float64))
    assert (error <= bound(precision, table)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zero_and_a_rows_largest_element_are_near_exact(precision):
    table = np.zeros((2, 5), np.float32)
    table[1] = [0, 1.5, -3, 0, 0.75]
    answer = store_of(table, precision).gather(np.array([0, 1]))
    assert (answer[table == 0] == 0).all()
    assert answer[1, 2] == pytest.approx(-3, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(table=tables())
def test_float16_and_bfloat16_are_those_of_numpy_and_tensorflow(table):
    import ml_dtypes

    rows = np.arange(len(table))
    halves = store_of(table, Precision.FLOAT16).gather(rows)
    np.testing.assert_array_equal(halves, table.astype(np.float16).astype(np.float32))
    brains = store_of(table, Precision.BFLOAT16).gather(rows)
    np.testing.assert_array_equal(brains, table.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_pool_is_the_sum_of_what_is_gathered_to_the_bit(precision, width, weighted):
    rng = np.random.default_rng(width)
    store = store_of(rng.normal(size=(50, width)).astype(np.float32), precision)
    table = store.gather(np.arange(50))
    offsets = np.cumsum([0, 0, 3, 1, 40, 0, 17, 600])
    rows = rng.integers(0, 50, offsets[-1])
    weights = rng.normal(size=len(rows)).astype(np.float32) if weighted else None
    pooled = store.pool(rows, offsets, weights)
    np.testing.assert_array_equal(pooled, summed(table, rows, offsets, weights))
    assert len(list(pairwise(offsets))) == len(pooled)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [5, 64])
def test_a_gather_reads_each_row_in_its_place(precision, width):
    table = np.random.default_rng(5).normal(size=(50, width)).astype(np.float32)
    store = store_of(table, precision)
    one_by_one = np.concatenate(
        [store_of(row[None], precision).gather(np.array([0])) for row in table]
    )
    rows = np.array([49, 0, 0, 17], np.int32)
    np.testing.assert_array_equal(store.gather(rows), one_by_one[rows])


@pytest.mark.parametrize(
    ("precision", "elements"),
    [
        (Precision.FLOAT16, [1.0, 65520.0]),
        (Precision.BFLOAT16, [1.0, 3.4e38]),
        (Precision.INT8, [1.0, np.inf]),
        (Precision.INT8, [np.nan, 1.0]),
        (Precision.INT4, [-np.inf, 1.0]),
    ],
)
def test_rows_that_cannot_be_kept_are_told(precision, elements):
    table = np.float32([[1.0, 2.0], elements, [0.0, -1.0]])
    assert encode(precision, table)[1].tolist() == [True, False, True]


@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.BFLOAT16])
def test_infinity_and_nan_stay_what_they_are_without_a_scale(precision):
    table = np.float32([[np.inf, -np.inf, np.nan, 1.0]])
    table = np.concatenate([table, np.uint32([[0xFFFFFFFF] * 4]).view(np.float32)])
    answer = store_of(table, precision).gather(np.array([0, 1]))
    assert answer[0, :2].tolist() == [np.inf, -np.inf]
    assert np.isnan(answer[0, 2])
    assert np.isnan(answer[1]).all()


# Loading.

TABLE = np.random.default_rng(3).normal(size=(ROWS, COLUMNS)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    rows=row_sets(),
    precision=st.sampled_from(PRECISIONS),
    columns=st.sampled_from([(0, COLUMNS), (1, 8), (5, 6)]),
    row_cuts=st.sets(st.integers(1, ROWS - 1), max_size=2),
    column_cuts=st.sets(st.integers(1, COLUMNS - 1), max_size=1),
    buffer_bytes=st.sampled_from([1, 500, 1 << 20]),
)
def test_a_slice_is_converted_row_by_row_however_it_lies(
    rows, precision, columns, row_cuts, column_cuts, buffer_bytes, tmp_path_factory
):
    boxes = [("emb", TABLE, box) for box in grid(row_cuts, column_cuts)]
    prefix = save_boxes(tmp_path_factory.mktemp("checkpoint") / "v", boxes)
    piece = Slice("emb", 0, rows, *columns, Storage(precision=precision))
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "BUFFER_BYTES", buffer_bytes)
        coded = load_coded(open_bundle(prefix).source("emb", "emb"), piece, steps.append)
    held = np.ascontiguousarray(TABLE[rows.rows(0, rows.count), slice(*columns)])
    np.testing.assert_array_equal(coded, encode(precision, held)[0])
    assert (
        sum(steps) == coded.nbytes == piece.nbytes(open_bundle(prefix).source("emb", "emb").table)
    )


@pytest.mark.parametrize("rows", [RowRange(0, ROWS), RowMod(1, 2, ROWS), RowHash(1, 2, ROWS)])
def test_a_row_that_cannot_be_kept_is_named(rows, tmp_path: Path):
    table = TABLE.copy()
    bad = int(rows.rows(50, 51)[0])
    table[bad, 3] = np.nan
    source = open_bundle(save(tmp_path / "v", {"emb": table})).source("emb", "emb")
    piece = Slice("emb", 0, rows, 0, COLUMNS, Storage(precision=Precision.INT8))
    with pytest.raises(InvalidArgument, match=rf"'emb': row {bad} has elements .* 'int8'"):
        load_coded(source, piece)


def test_loading_takes_little_more_memory_than_what_is_kept(tmp_path: Path):
    table = np.zeros((1 << 20, 32), np.float32)
    source = open_bundle(save(tmp_path / "v", {"emb": table})).source("emb", "emb")
    piece = Slice("emb", 0, RowRange(0, 1 << 20), 0, 32, Storage(precision=Precision.INT8))
    del table
    most = [memory.current_rss_bytes()]
    before = most[0]
    coded = load_coded(source, piece, lambda _: most.append(memory.current_rss_bytes()))
    assert max(most) - before < coded.nbytes + (40 << 20)


def test_a_store_of_another_width_is_refused():
    with pytest.raises(ValueError, match="no rows of 9 int8"):
        CodedStore(np.zeros((3, 12), np.uint8), Precision.INT8, 9)
    assert coded_row_bytes(Precision.INT8, 9) == 13
    assert coded_row_bytes(Precision.INT4, 9) == 9
