"""Tables whose rows are dealt out over several runs of bytes, as `mod` partitions are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.shards.coded import CodedStore
from shardserve.shards.loading import load_coded, load_slice
from shardserve.shards.mapped import MappedStore
from shardserve.shards.storage import Precision, Storage
from tests.shards.stores import dealt_out
from tests.shards.test_loading import TENSOR, expected, pieces


@settings(max_examples=40, deadline=None)
@given(piece=pieces(), parts=st.integers(1, 7))
def test_every_store_answers_a_slices_rows(piece, parts, tmp_path_factory):
    source = dealt_out(tmp_path_factory.mktemp("dealt") / "data", TENSOR, parts)
    held = expected(piece)
    np.testing.assert_array_equal(load_slice(source, piece), held)
    rows = np.arange(len(held))[::-1].astype(np.int64)
    np.testing.assert_array_equal(MappedStore(source, piece, 0).gather(rows), held[rows])
    if len(held) and str(TENSOR.dtype) == "float32":
        half = replace(piece, storage=Storage(precision=Precision.BFLOAT16))
        store = CodedStore(load_coded(source, half), Precision.BFLOAT16, piece.columns)
        np.testing.assert_allclose(store.gather(rows), held[rows], rtol=2**-8)
