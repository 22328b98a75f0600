"""The index of a checkpoint, read without TensorFlow from files that TensorFlow wrote."""

from __future__ import annotations

import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument, NotFound, Unimplemented
from shardserve.shards.bundle import open_bundle
from shardserve.shards.ordered_code import slice_key
from shardserve.shards.tables import Extent, Table, TableSource
from tests.checkpoints import Array, numbered, save, save_boxes, save_in_files

DTYPES = [
    *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128"),
]


def assembled(source: TableSource) -> Array:
    """The table as its extents say, NaN where they say nothing."""
    table = source.table
    result = np.full((table.rows, table.columns), np.nan, np.float32)
    for extent in source.extents:
        shape = (
            extent.row_stop - extent.row_start,
            extent.column_stop - extent.column_start,
        )
        values = np.fromfile(extent.path, table.dtype, math.prod(shape), offset=extent.offset)
        place = (
            slice(extent.row_start, extent.row_stop),
            slice(extent.column_start, extent.column_stop),
        )
        assert np.isnan(result[place]).all()
        result[place] = values.reshape(shape)
    return result


@settings(max_examples=15, deadline=None)
@given(
    shapes=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40),
        st.lists(st.integers(0, 7), max_size=4).map(tuple),
        min_size=1,
        max_size=30,
    )
)
def test_every_tensor_is_found_with_its_shape_and_bytes(shapes, tmp_path_factory):
    tensors = {name: numbered(shape) for name, shape in shapes.items()}
    prefix = save(tmp_path_factory.mktemp("checkpoint") / "variables", tensors)

    bundle = open_bundle(prefix)

    assert {key: entry.shape for key, entry in bundle.entries.items()} == shapes
    for key, entry in bundle.entries.items():
        (piece,) = entry.pieces
        assert (
            Path(piece.path).read_bytes()[piece.offset :][: piece.nbytes] == tensors[key].tobytes()
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_has_its_numpy_name(dtype, tmp_path):
    prefix = save(tmp_path / "variables", {"x": numbered((3, 2), dtype)})
    assert open_bundle(prefix).source("x", "t").table == Table("t", dtype, 3, (2,))


def test_bfloat16_and_strings_are_named(tmp_path):
    tensors = {
        "half": tf.cast(tf.ones([3, 2]), tf.bfloat16).numpy(),
        "words": np.array([b"a", b"bc"], object),
    }
    bundle = open_bundle(save(tmp_path / "variables", tensors))
    assert bundle.entries["half"].dtype == "bfloat16"
    assert bundle.entries["words"].dtype == "string"
    assert bundle.source("half", "t").table.row_bytes == 4
    with pytest.raises(InvalidArgument, match="table of string"):
        bundle.source("words", "t")


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.sets(st.integers(1, 399), max_size=6),
    inner=st.sampled_from([(), (6,), (3, 4), (3, 2, 2)]),
    spelled=st.booleans(),
)
def test_a_tensor_saved_in_runs_of_rows_is_one_table(cuts, inner, spelled, tmp_path_factory):
    tensor = numbered((400, *inner))
    bounds = [0, *sorted(cuts), 400]
    rest = tuple(slice(0, size) if spelled else slice(None) for size in inner)
    boxes = [("emb", tensor, (slice(start, stop), *rest)) for start, stop in pairwise(bounds)]
    prefix = save_boxes(tmp_path_factory.mktemp("checkpoint") / "variables", boxes)

    source = open_bundle(prefix).source("emb", "emb")

    assert source.table == Table("emb", "float32", 400, inner)
    np.testing.assert_array_equal(assembled(source), tensor.reshape(400, -1))


def test_slices_are_found_however_large_their_numbers(tmp_path):
    bounds = [0, 1, 63, 64, 65, 8191, 8192, 1 << 20, 3_000_000]
    tensor = numbered((bounds[-1],), np.uint8)
    boxes = [("emb", tensor, (slice(start, stop),)) for start, stop in pairwise(bounds)]
    source = open_bundle(save_boxes(tmp_path / "variables", boxes)).source("emb", "emb")
    assert [extent.row_start for extent in source.extents] == bounds[:-1]


def test_a_tensor_saved_in_columns_is_one_table(tmp_path):
    tensor = numbered((5, 8, 3))
    boxes = [("emb", tensor, (slice(0, 5), slice(a, b), slice(0, 3))) for a, b in ((0, 2), (2, 8))]
    source = open_bundle(save_boxes(tmp_path / "variables", boxes)).source("emb", "emb")
    assert [(e.column_start, e.column_stop) for e in source.extents] == [(0, 6), (6, 24)]
    np.testing.assert_array_equal(assembled(source), tensor.reshape(5, 24))


def test_slices_of_an_inner_dimension_are_refused(tmp_path):
    tensor = numbered((2, 3, 4))
    boxes = [("emb", tensor, (slice(0, 2), slice(0, 3), slice(a, a + 2))) for a in (0, 2)]
    bundle = open_bundle(save_boxes(tmp_path / "variables", boxes))
    with pytest.raises(Unimplemented, match="'emb' was saved in slices across dimension 2"):
        bundle.source("emb", "emb")


def test_a_partitioned_variable_of_tensorflow_1_is_one_table(tmp_path):
    v1 = tf.compat.v1
    expected = numbered((10, 4))
    with tf.Graph().as_default(), v1.Session() as session:
        v1.get_variable(
            "emb",
            [10, 4],
            initializer=lambda shape, dtype, partition_info: tf.constant(
                expected[partition_info.var_offset[0] :][: shape[0]]
            ),
            partitioner=v1.fixed_size_partitioner(3),
            use_resource=True,
        )
        session.run(v1.global_variables_initializer())
        prefix = v1.train.Saver().save(session, str(tmp_path / "model"))
    source = open_bundle(prefix).source("emb", "emb")
    assert [(e.row_start, e.row_stop) for e in source.extents] == [(0, 4), (4, 7), (7, 10)]
    np.testing.assert_array_equal(assembled(source), expected)


def test_tensors_may_lie_in_several_data_files(tmp_path):
    parts = [{"a": numbered((4, 2))}, {"b": numbered((3, 5))}]
    bundle = open_bundle(save_in_files(tmp_path / "variables", parts))
    for part, name in enumerate("ab"):
        source = bundle.source(name, name)
        assert source.extents[0].path.endswith(f"variables.data-0000{part}-of-00002")
        np.testing.assert_array_equal(assembled(source), parts[part][name])


def test_a_checkpoint_may_be_moved(tmp_path):
    save(tmp_path / "variables", {"a": numbered((4, 2))})
    shutil.copytree(tmp_path, tmp_path / "elsewhere")
    source = open_bundle(str(tmp_path / "elsewhere" / "variables")).source("a", "a")
    path = tmp_path / "elsewhere" / "variables.data-00000-of-00001"
    assert source.extents == (Extent(str(path), 0, 0, 4, 0, 2),)


def test_what_is_no_table_is_refused_by_name(tmp_path):
    prefix = save(tmp_path / "variables", {"step": numbered(())})
    with pytest.raises(InvalidArgument, match="'step' is a scalar"):
        open_bundle(prefix).source("step", "t")
    with pytest.raises(NotFound, match="no entry 'other'"):
        open_bundle(prefix).source("other", "t")


signed = st.integers(0, 2**62 - 1)


@given(st.lists(st.tuples(signed, st.one_of(st.none(), signed)), max_size=4))
def test_slice_keys_sort_as_their_extents(extents):
    def order(key):
        return [(start, -1 if length is None else length) for start, length in key]

    others = [
        [*extents[:i], (extents[i][0] + 1, extents[i][1]), *extents[i + 1 :]]
        for i in range(len(extents))
    ]
    keys = [extents, *others]
    by_code = sorted(keys, key=lambda key: slice_key("name", key))
    assert [order(key) for key in by_code] == sorted(order(key) for key in keys)
