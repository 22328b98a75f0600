"""Models of every kind answer what TensorFlow answers for them uncut, in every signature."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import saved_model_pb2

from shardserve.batching.errors import DataLoss, InvalidArgument
from shardserve.router.sharded import ShardedServable
from shardserve.shards.cut.cut import CutRule, cut_saved_model
from shardserve.shards.cut.lookups import Motif
from shardserve.shards.layout import Layout
from shardserve.shards.tables import TableSource
from tests import saved_models_flow, saved_models_more, saved_models_tf1
from tests.layouts import layout_of, random_layout
from tests.saved_models import Feeds, ModelCase
from tests.sharded import THRESHOLD, ask, assert_same, served, tables_of
from tests.uncut import Uncut

CASES = {
    case.name: case
    for module in (saved_models_tf1, saved_models_more, saved_models_flow)
    for case in module.CASES
}
SHARDS = 3


@pytest.fixture(scope="module")
def serve(saved_model, sources, threads) -> Callable[[str, Layout], ShardedServable]:
    """A case served under a layout, its shards in this process."""
    return lambda name, layout: served(saved_model(name), layout, sources(name), threads)


def requests(case: ModelCase) -> st.SearchStrategy[tuple[str, Feeds]]:
    """A signature, and a valid request for it."""
    by_name = {"serving_default": case.feeds, **case.others}
    return st.one_of(*(st.tuples(st.just(name), feeds) for name, feeds in by_name.items()))


@pytest.mark.parametrize("kind", ["row_range", "row_hash", "row_mod", "column"])
@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_tensorflows_under_each_layout(name, kind, serve, sources, uncut):
    tables = {table: source.table for table, source in sources(name).items()}
    servable = serve(name, layout_of(kind, tables, SHARDS))

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(requests(CASES[name]))
    def check(request: tuple[str, Feeds]) -> None:
        assert_same(ask(servable, *request), uncut(name).answer(*request))

    check()
    asyncio.run(servable.close())


def test_bags_of_half_precision_are_summed_on_the_shards(saved_model):
    cut = cut_saved_model(saved_model("halves"), CutRule(threshold=THRESHOLD))
    program = cut.program_for("serving_default", ("half_mean",))
    motifs = {lookup.motif for step in program.rounds for lookup in step.lookups}
    assert motifs == {Motif.SEGMENT_POOL}


@pytest.mark.parametrize("name", ["tf1_mod_ref", "tf1_div_resource", "tf1_list_mod"])
def test_a_partitioned_table_is_right_under_any_layout(name, serve, sources, uncut):
    tables = {table: source.table for table, source in sources(name).items()}

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(1, 4).flatmap(lambda n: random_layout(tables, n)), st.data())
    def check(layout: Layout, data: st.DataObject) -> None:
        servable = serve(name, layout)
        for _ in range(3):
            request = data.draw(requests(CASES[name]))
            assert_same(ask(servable, *request), uncut(name).answer(*request))
        asyncio.run(servable.close())

    check()


@pytest.mark.parametrize("name", ["tf1_mod_resource", "tf1_div_ref"])
@pytest.mark.parametrize("bad", [saved_models_tf1.ROWS, -1, 1 << 40])
def test_an_id_outside_of_all_parts_is_refused_as_tensorflow_refuses_it(
    name, bad, serve, sources, uncut
):
    tables = {table: source.table for table, source in sources(name).items()}
    servable = serve(name, layout_of("row_range", tables, 2))
    feeds = {
        "grid": np.zeros((1, 2, 3), np.int32),
        "indices": np.array([[0, 0], [0, 1]], np.int64),
        "values": np.array([5, bad], np.int64),
        "count": np.array(1, np.int64),
    }
    with pytest.raises(InvalidArgument, match=rf"indices\[1\] = {bad} is not in \[0, 103\)"):
        ask(servable, "serving_default", feeds)
    with pytest.raises(tf.errors.InvalidArgumentError):
        uncut(name).answer("serving_default", feeds)
    asyncio.run(servable.close())


TABLES = 1000


def _many_tables(path: Path) -> None:
    def graph():
        ids = tf.compat.v1.placeholder(tf.int64, [None, 3], "ids")
        tables = [
            tf.compat.v1.get_variable(
                f"table_{number}", initializer=saved_models_tf1.numbers(17, 16) + number
            )
            for number in range(TABLES)
        ]
        rows = [
            tf.reduce_sum(tf.gather(table, (ids + number) % 17), axis=1)
            for number, table in enumerate(tables)
        ]
        outputs = {"all": tf.add_n(rows), "first": rows[0], "last": rows[-1]}
        return {"serving_default": ({"ids": ids}, outputs)}

    saved_models_tf1.export_graph(path, graph)


@pytest.fixture(scope="module")
def many_tables(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("many") / "tables"
    _many_tables(path)
    return path


@pytest.fixture(scope="module")
def many_sources(many_tables) -> dict[str, TableSource]:
    return tables_of(many_tables)


@pytest.fixture(scope="module")
def many_uncut(many_tables) -> Iterator[Uncut]:
    uncut = Uncut(many_tables)
    yield uncut
    uncut.close()


@pytest.mark.parametrize("kind", ["row_hash", "column", "table"])
def test_a_thousand_tables_answer_as_one_does(kind, many_tables, many_sources, many_uncut, threads):
    tables = {table: source.table for table, source in many_sources.items()}
    assert len(tables) == TABLES
    servable = served(many_tables, layout_of(kind, tables, SHARDS), many_sources, threads)
    for batch in (0, 1, 5):
        feeds = {"ids": np.arange(batch * 3, dtype=np.int64).reshape(batch, 3)}
        expected = many_uncut.answer("serving_default", feeds)
        assert_same(ask(servable, "serving_default", feeds), expected)
    asyncio.run(servable.close())


@pytest.mark.parametrize("kind", ["row_mod", "column", "grid"])
def test_a_model_in_text_form_answers_as_the_binary_one(kind, saved_model, tmp_path, threads):
    path = Path(shutil.copytree(saved_model("vocabulary"), tmp_path / "text"))
    binary = path / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(binary.read_bytes())
    (path / "saved_model.pbtxt").write_text(text_format.MessageToString(model))
    binary.unlink()
    sources = tables_of(path)
    layout = layout_of(kind, {name: s.table for name, s in sources.items()}, SHARDS)
    servable = served(path, layout, sources, threads)
    feeds = {"words": np.array([[b"red", b"unknown"]], object)}
    uncut = Uncut(path)
    expected = uncut.answer("serving_default", feeds)
    assert_same(ask(servable, "serving_default", feeds), expected)
    uncut.close()
    asyncio.run(servable.close())


def test_a_text_form_that_is_cut_off_is_refused_naming_the_file(tmp_path):
    (tmp_path / "saved_model.pbtxt").write_text('meta_graphs { graph_def { node { name: "x')
    with pytest.raises(DataLoss, match=r"saved_model\.pbtxt: not a SavedModel, or cut off"):
        tables_of(tmp_path)
