"""A SavedModel of a size that nobody has in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import terabyte
from benchmarks.server_process import DidNotStart
from benchmarks.sparse_model import SparseTable, write
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.layout import Slice, check_memory
from shardserve.shards.layout_file import parse_layout, to_layout
from shardserve.shards.mapped import MappedStore
from shardserve.shards.model import PlanOptions
from shardserve.shards.rows import RowRange
from shardserve.shards.storage import Storage, Tier
from shardserve.shards.tables import Table

TABLES = (SparseTable("items", 1_000_000_000, 512, 20), SparseTable("users", 1000, 8, 10))


@pytest.fixture(scope="module")
def version(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "1"
    write(directory, TABLES)
    return directory


def test_tensorflow_reads_the_index(version):
    import tensorflow as tf

    found = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    assert found.get_variable_to_shape_map() == {"items": [1_000_000_000, 512], "users": [1000, 8]}
    assert found.get_variable_to_dtype_map()["items"] == tf.float16


def test_it_is_a_model_whose_tables_are_cut(version):
    options = PlanOptions(shards=8, threshold=1 << 30, storage=Storage(Tier.MAPPED))
    plan = plan_model("m", 1, version, options)
    assert plan.sources["items"].table.nbytes == 1_024_000_000_000
    assert [plan.memory_of_shard(shard) for shard in range(8)] == [0] * 8


def test_planted_rows_are_there_and_others_are_zeros(version):
    plan = plan_model("m", 1, version, PlanOptions(threshold=1, storage=Storage(Tier.MAPPED)))
    for table in TABLES:
        piece = Slice(table.name, 0, RowRange(0, table.rows), 0, table.columns)
        store = MappedStore(plan.sources[table.name], piece)
        planted = table.planted_rows()
        assert (planted[0], planted[-1]) == (0, table.rows - 1)
        np.testing.assert_array_equal(store.gather(planted), table.values(planted))
        assert table.values(planted).any(axis=1).all()
        holes = np.setdiff1d(planted + 1, planted)[:-1]
        assert not store.gather(holes).any()


@pytest.mark.parametrize("cache", [None, "1MiB"])
def test_the_layout_of_the_terabyte_puts_no_row_into_memory(cache):
    tables = {t.name: Table(t.name, "float16", t.rows, (t.columns,)) for t in terabyte.TABLES}
    assert sum(table.nbytes for table in tables.values()) >= 1 << 40
    layout = to_layout(parse_layout(terabyte.layout_text(terabyte.TABLES, cache), "file"), tables)
    check_memory(layout, tables, 1 << 20 if cache else 0)


def test_the_client_knows_planted_rows_from_holes_and_from_anything_else():
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    (table,) = TABLES[1:]
    rows = np.array([0, 999, 998])
    values = table.values(rows).astype(np.float32)
    values[2] = 0
    reply = predict_pb2.PredictResponse()
    client = terabyte.Client("localhost:1", [table])
    reply.outputs["users"].CopyFrom(tf.make_tensor_proto(values))
    client.check({table: rows}, reply)
    values[2, 3] = 1
    reply.outputs["users"].CopyFrom(tf.make_tensor_proto(values))
    with pytest.raises(DidNotStart, match="wrong answer: rows of users"):
        client.check({table: rows}, reply)
