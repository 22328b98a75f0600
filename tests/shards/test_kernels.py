"""Gather and pool against plain loops, to the bit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument, Unimplemented
from shardserve.shards import memory
from shardserve.shards.kernels import AHEAD, RowKernels

COUNT = 50
#: Widths with a kernel of their own, and their neighbours; rows of any number of cache lines.
WIDTHS = [1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100, 128, 129, 200, 256, 300, 600]
INTEGERS = ["int32", "int64"]


def table_of(width: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    table = memory.empty((COUNT, width), dtype)
    table[...] = np.random.default_rng(seed).normal(size=table.shape)
    return table


def summed(table: np.ndarray, rows: Any, offsets: Any, weights: Any = None) -> np.ndarray:
    """Row by row in the table's own precision, as a graph of gather, multiply and add does it."""
    out = np.zeros((len(offsets) - 1, table.shape[1]), table.dtype)
    for bag, (first, stop) in enumerate(pairwise(offsets)):
        for place in range(first, stop):
            row = table[rows[place]]
            out[bag] += row if weights is None else row * weights[place]
    return out


@st.composite
def bags(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Rows and offsets, of any of the integer types; bags may be empty, or none at all."""
    sizes = draw(st.lists(st.integers(0, 12), max_size=12))
    count = sum(sizes)
    rows = draw(st.lists(st.integers(0, COUNT - 1), min_size=count, max_size=count))
    return (
        np.array(rows, draw(st.sampled_from(INTEGERS))),
        np.cumsum([0, *sizes]).astype(draw(st.sampled_from(INTEGERS))),
    )


@settings(max_examples=120, deadline=None)
@given(
    asked=bags(),
    width=st.sampled_from(WIDTHS),
    dtype=st.sampled_from(["float32", "float64"]),
    weighted=st.booleans(),
)
def test_a_pool_is_the_sum_in_order(asked, width, dtype, weighted):
    rows, offsets = asked
    table = table_of(width, dtype)
    weights = np.random.default_rng(1).normal(size=len(rows)).astype(dtype) if weighted else None
    pooled = RowKernels(table).pool(rows, offsets, weights)
    assert pooled.dtype == table.dtype
    np.testing.assert_array_equal(pooled, summed(table, rows, offsets, weights))


@settings(max_examples=120, deadline=None)
@given(asked=bags(), nbytes=st.one_of(st.integers(1, 200), st.sampled_from([512, 1000, 4100])))
def test_a_gather_copies_rows_of_any_length(asked, nbytes):
    rows, _ = asked
    table = np.random.default_rng(2).integers(0, 256, (COUNT, nbytes), np.uint8)
    np.testing.assert_array_equal(RowKernels(table).gather(rows), table[rows])


@pytest.mark.parametrize("dtype", ["float16", "uint16", "int8", "int64", "bool", "complex128"])
def test_a_gather_keeps_the_dtype_and_the_bits(dtype):
    table = np.random.default_rng(3).integers(0, 2, (COUNT, 10)).astype(dtype)
    gathered = RowKernels(table).gather(np.array([49, 0, 0, 7]))
    assert gathered.dtype == table.dtype
    np.testing.assert_array_equal(gathered, table[[49, 0, 0, 7]])


def test_nan_and_infinity_keep_their_bits_and_spread():
    table = np.array([[np.nan, 1.0], [np.inf, -0.0]], np.float32)
    table[0, 0] = np.uint32(0x7FC12345).view(np.float32)
    kernels = RowKernels(table)
    gathered = kernels.gather(np.array([1, 0]))
    assert gathered.tobytes() == table[[1, 0]].tobytes()
    pooled = kernels.pool(np.array([0, 1]), np.array([0, 1, 2]))
    assert np.isnan(pooled[0, 0])
    assert pooled[1, 0] == np.inf


@pytest.mark.parametrize("width", [5, 64])
@pytest.mark.parametrize("place", [0, 1, AHEAD, 3 * AHEAD - 1])
@pytest.mark.parametrize("bad", [-1, COUNT, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_row_outside_is_named_and_never_read(width, place, bad, dtype):
    rows = np.zeros(3 * AHEAD, dtype)
    rows[place] = bad
    kernels = RowKernels(table_of(width))
    message = rf"rows\[{place}\] = {bad} is not in \[0, {COUNT}\)"
    with pytest.raises(InvalidArgument, match=message):
        kernels.gather(rows)
    with pytest.raises(InvalidArgument, match=message):
        kernels.pool(rows, np.array([0, len(rows)]))


@pytest.mark.parametrize("bad", [2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_a_row_far_outside_is_named(bad):
    kernels = RowKernels(table_of(64))
    with pytest.raises(InvalidArgument, match=rf"rows\[40\] = {bad}"):
        kernels.gather(np.array([0] * 40 + [bad]))


def test_a_table_without_rows_has_none():
    kernels = RowKernels(np.empty((0, 4), np.float32))
    assert kernels.gather(np.array([], np.int64)).shape == (0, 4)
    assert kernels.pool(np.array([], np.int64), np.array([0, 0])).tolist() == [[0.0] * 4]
    with pytest.raises(InvalidArgument, match=r"rows\[0\] = 0 is not in \[0, 0\)"):
        kernels.gather(np.array([0]))


@pytest.mark.parametrize("width", [5, 64])
@pytest.mark.parametrize(
    "offsets", [[], [0], [0, 2], [1, 3], [0, 4, 3], [0, 2, 1, 3], [0, -1, 3], [0, 2**40, 3]]
)
def test_offsets_that_do_not_rise_from_zero_to_n_are_refused(width, offsets):
    with pytest.raises(InvalidArgument, match="offsets must rise from 0 to the number of rows, 3"):
        RowKernels(table_of(width)).pool(np.array([0, 1, 2]), np.array(offsets, np.int64))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([1.0]), r"row numbers must be int32 or int64 \[n\], not float64 \[1\]"),
        (np.array([[1]]), r"not int64 \[1, 1\]"),
        (np.array([1], np.uint8), "not uint8"),
        (np.array([1], ">i8"), "not int64"),
    ],
)
def test_row_numbers_of_another_form_are_refused(rows, message):
    kernels = RowKernels(table_of(4))
    with pytest.raises(InvalidArgument, match=message):
        kernels.gather(rows)
    with pytest.raises(InvalidArgument, match=message):
        kernels.pool(rows, np.array([0, 1]))


@pytest.mark.parametrize(
    "weights", [np.ones(2, np.float32), np.ones(3, np.float64), np.ones((3, 1), np.float32)]
)
def test_weights_of_another_form_are_refused(weights):
    with pytest.raises(InvalidArgument, match=r"weights must be float32 \[3\]"):
        RowKernels(table_of(4)).pool(np.array([0, 1, 2]), np.array([0, 3]), weights)


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_pooling_other_dtypes_is_unimplemented(dtype):
    with pytest.raises(Unimplemented, match=f"pooling rows of {dtype}"):
        RowKernels(np.zeros((2, 2), dtype)).pool(np.array([0]), np.array([0, 1]))


def test_views_are_understood():
    table = table_of(16)
    rows = np.arange(20)[::2]
    offsets = np.array([0, 9, 5, 9, 10, 9])[::2]
    weights = np.arange(20, dtype=np.float32)[::2]
    for array in (rows, offsets, weights):
        array.flags.writeable = False
    kernels = RowKernels(table)
    np.testing.assert_array_equal(kernels.gather(rows), table[rows])
    np.testing.assert_array_equal(
        kernels.pool(rows, offsets, weights), summed(table, rows, offsets, weights)
    )


def test_rows_that_are_not_aligned_are_understood():
    raw = np.zeros(8 * 5 + 1, np.uint8)
    rows = raw[1:].view(np.int64)
    rows[:] = [3, 1, 4, 1, 5]
    table = table_of(8)
    np.testing.assert_array_equal(RowKernels(table).gather(rows), table[rows])


@pytest.mark.parametrize("table", [np.zeros(3), np.zeros((3, 0)), np.zeros((6, 4))[::2]])
def test_a_table_must_be_contiguous_rows(table):
    with pytest.raises(ValueError, match="a table must"):
        RowKernels(table)
