"""Ragged tensors come back from a batch as they went in."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.ragged import Ragged, checked, join_ragged, split_ragged

DTYPES = [np.dtype(t) for t in ("i8", "f4", ml_dtypes.bfloat16, object)]
LENGTHS = st.lists(st.integers(0, 4), max_size=4)


def ragged(lengths: list[int], dtype: np.dtype, splits: str = "i8", seed: int = 0) -> Ragged:
    numbers = range(seed, seed + sum(lengths))
    if dtype.hasobject:
        values = np.array([b"%d" % n for n in numbers], object)
    else:
        values = np.array(numbers, np.int64).astype(dtype)
    return Ragged(values, np.cumsum([0, *lengths]).astype(splits))


def rows(tensor: Ragged) -> list[list[object]]:
    ends = tensor.row_splits.tolist()
    return [tensor.values[a:b].tolist() for a, b in itertools.pairwise(ends)]


@given(
    st.lists(LENGTHS, min_size=1, max_size=5),
    st.sampled_from(DTYPES),
    st.sampled_from(["i4", "i8"]),
    st.integers(0, 3),
)
def test_splitting_what_was_joined_gives_each_its_rows_back(lengths, dtype, splits, missing):
    missing = missing if any(lengths) else 0
    parts = [ragged(one, dtype, splits, 9 * place) for place, one in enumerate(lengths)]
    joined = join_ragged(parts, missing)
    assert checked(joined, sum(part.rows for part in parts) + missing) is joined
    for part, back in zip(parts, split_ragged(joined, [p.rows for p in parts]), strict=True):
        assert rows(back) == rows(part)
        assert (back.values.dtype, back.row_splits.dtype) == (part.values.dtype, np.dtype(splits))
        assert back.row_splits.tolist() == part.row_splits.tolist()


def test_added_rows_repeat_the_first_of_the_last_that_has_any():
    parts = [ragged([2, 1], DTYPES[0]), ragged([], DTYPES[0])]
    assert rows(join_ragged(parts, 2)) == [[0, 1], [2], [0, 1], [0, 1]]


@pytest.mark.parametrize(
    "splits", [[0, 1], [0, 2, 1], [1, 2, 3], [0, 1, 2], [[0, 1, 3]], [0.0, 1, 3]]
)
def test_splits_that_are_none_are_refused(splits):
    with pytest.raises(InvalidArgument, match="row_splits"):
        checked(Ragged(np.arange(3), np.array(splits)), 2)
