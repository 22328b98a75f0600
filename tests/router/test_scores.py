"""Scores, and the best of them, are TensorFlow's for the uncut model, under every layout."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument, ResourceExhausted, Unavailable
from shardserve.router.partition import partitions_of
from shardserve.router.scores import PreparedScores
from shardserve.router.servable import RequestContext
from shardserve.router.session import StageThreads
from shardserve.router.sharded import ShardedServable, load_sharded
from shardserve.shards import layout as layouts
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.cut.scorings import Pick, Scoring
from shardserve.shards.layout import Layout
from shardserve.shards.layout_file import dump_layout, to_file
from shardserve.shards.local import LocalChannel
from shardserve.shards.messages import Axis, LookupReply, LookupRequest
from shardserve.shards.model import ModelPlan, PlanOptions
from shardserve.shards.shard import Shard
from shardserve.shards.tables import Table
from tests import scored_models
from tests.layouts import LAYOUTS, layout_of, random_layout
from tests.scored_models import CLASSES, ITEMS, WIDTH, Feeds
from tests.sharded import tables_of

RELAXED = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
NO_QUERIES = {
    "x": np.zeros((0, WIDTH), np.float32),
    "pairs": np.zeros((0, 2, WIDTH), np.float32),
    "one": np.zeros(WIDTH, np.float32),
}
#: Every score is equal.
ALL_EQUAL = NO_QUERIES | {
    "x": np.zeros((2, WIDTH), np.float32),
    "pairs": np.zeros((1, 2, WIDTH), np.float32),
}


@pytest.fixture(scope="module")
def directory(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("scored")


@pytest.fixture(scope="module")
def oracle(directory: Path) -> Callable[[Feeds], Feeds]:
    """TensorFlow's own answer for the uncut model."""
    model = tf.saved_model.load(str(directory))
    signature = model.signatures["serving_default"]

    def answer(feeds: Feeds) -> Feeds:
        outputs = signature(**{name: tf.constant(value) for name, value in feeds.items()})
        return {alias: value.numpy() for alias, value in outputs.items()}

    answer.model = model
    return answer


#: All but the one in which classes would be there twice.
SCORED = sorted(LAYOUTS.keys() - {"hot_rows"})


def test_hot_rows_of_a_table_that_is_scored_are_refused(directory, sources, tmp_path: Path):
    tables = {name: source.table for name, source in sources.items()}
    hot = layouts.with_hot_rows(LAYOUTS["row_mod"](tables["items"], 2), [1, 5])
    layout = layout_of("row_mod", tables, 2)
    file = tmp_path / "layout.yaml"
    changed = replace(layout, tables={**layout.tables, "items": hot})
    file.write_text(dump_layout(to_file(changed)))
    with pytest.raises(InvalidArgument, match="table 'items': queries are multiplied with it"):
        plan_model("scores", 1, directory, PlanOptions(layout_file=file))


@pytest.fixture(scope="module")
def sources(directory: Path):
    return tables_of(directory)


def loaded(directory: Path, sources, layout: Layout, threads: StageThreads) -> ShardedServable:
    plan = ModelPlan("scores", 1, str(directory), ("serve",), layout, sources, "")
    shards = [Shard.load(sources, layout.slices_of_shard(s)) for s in range(layout.shards)]
    return load_sharded(plan, [LocalChannel(shard) for shard in shards], threads)


def ask(servable: ShardedServable, feeds: Feeds, *outputs: str) -> Feeds:
    wanted = outputs or tuple(servable.signatures["serving_default"].outputs)
    context = RequestContext("test", time.monotonic() + 60)
    return asyncio.run(servable.run("serving_default", feeds, wanted, context))


def assert_same(got: Feeds, expected: Feeds) -> None:
    """Numbers of classes exactly: no two scores are within rounding of each other, or equal."""
    assert got.keys() == expected.keys()
    for alias, value in expected.items():
        assert (got[alias].dtype, got[alias].shape) == (value.dtype, value.shape), alias
        if value.dtype.kind == "i":
            np.testing.assert_array_equal(got[alias], value, err_msg=alias)
        else:
            # The logarithm of a probability near one keeps the error of the sum it is taken of.
            np.testing.assert_allclose(got[alias], value, rtol=1e-5, atol=5e-7, err_msg=alias)


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("kind", SCORED)
def test_the_answer_is_tensorflows_under_each_layout(
    kind, shards, directory, sources, threads, oracle
):
    tables = {name: source.table for name, source in sources.items()}
    servable = loaded(directory, sources, layout_of(kind, tables, shards), threads)

    @RELAXED
    @example(NO_QUERIES)
    @example(ALL_EQUAL)
    @given(scored_models.feeds())
    def check(feeds: Feeds) -> None:
        assert_same(ask(servable, feeds), oracle(feeds))

    check()


def test_the_answer_is_tensorflows_under_random_layouts(directory, sources, threads, oracle):
    tables = {name: source.table for name, source in sources.items()}

    @RELAXED
    @given(st.integers(1, 4).flatmap(lambda n: random_layout(tables, n, hot_rows=False)), st.data())
    def check(layout: Layout, data: st.DataObject) -> None:
        servable = loaded(directory, sources, layout, threads)
        for _ in range(3):
            feeds = data.draw(scored_models.feeds())
            assert_same(ask(servable, feeds), oracle(feeds))

    check()


@pytest.mark.parametrize("name", ["kernel", "half"])
def test_a_grid_may_have_all_of_some_classes_on_one_shard_and_parts_of_others(
    name, directory, sources, threads, oracle
):
    table = sources[name].table
    first = layouts.row_range(table, [(0, 0, table.rows)])
    runs = [(0, 1, first), (1, table.columns, layouts.row_hash(table, [1, 2]))]
    layout = layout_of("column", {name: source.table for name, source in sources.items()}, 3)
    mixed = replace(layout, tables={**layout.tables, name: layouts.grid(runs)})
    servable = loaded(directory, sources, mixed, threads)
    assert_same(ask(servable, ALL_EQUAL), oracle(ALL_EQUAL))


class _Recorder:
    """A shard in process that keeps what it was asked and what it answered."""

    def __init__(self, shard: Shard) -> None:
        self._channel = LocalChannel(shard)
        self.answered: list[tuple[LookupRequest, LookupReply]] = []

    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        reply = await self._channel.lookup(request, deadline)
        self.answered.append((request, reply))
        return reply


@pytest.mark.parametrize(
    ("output", "columns"),
    [
        ("top_5_items", 10),
        ("top_5_bias_at", 10),
        ("top_5_softmax", 12),
        ("best", 2),
        ("likeliest", 2),
        ("top_5_vector", 10),
    ],
)
@pytest.mark.parametrize("by_rows", ["row_range", "row_mod"])
def test_from_slices_of_whole_classes_only_the_best_come_back(
    directory, sources, threads, output, columns, by_rows
):
    layout = Layout(
        3,
        1,
        {
            name: LAYOUTS["column" if name in ("kernel", "half") else by_rows](source.table, 3)
            for name, source in sources.items()
        },
    )
    plan = ModelPlan("scores", 1, str(directory), ("serve",), layout, sources, "")
    channels = [_Recorder(Shard.load(sources, plan.slices_of_shard(shard))) for shard in range(3)]
    servable = load_sharded(plan, channels, threads)
    ask(servable, ALL_EQUAL, output)
    for channel in channels:
        ((_, reply),) = channel.answered
        assert [result.shape[1] for result in reply.results] == [columns]


def test_classes_without_a_probability_are_equal(tmp_path: Path, threads):
    """Softmax of scores far apart is zero for most classes, of which the lowest numbers win."""

    class Peaked(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(tf.reshape(tf.range(400.0), [1, 400]), name="kernel")

        @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
        def __call__(self, x):
            values, indices = tf.math.top_k(tf.nn.softmax(x @ self.kernel), 8)
            return {"values": values, "indices": indices}

    module = Peaked()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    sources = tables_of(tmp_path)
    tables = {name: source.table for name, source in sources.items()}
    servable = loaded(tmp_path, sources, layout_of("column", tables, 3), threads)
    feeds = {"x": np.array([[30.0], [0.0], [-30.0], [1.0]], np.float32)}
    expected = module(tf.constant(feeds["x"]))
    got = ask(servable, feeds)
    np.testing.assert_array_equal(got["indices"], expected["indices"])
    np.testing.assert_allclose(got["values"], expected["values"], rtol=1e-5, atol=1e-37)


def test_scores_of_any_numbers_are_close_and_in_order(tmp_path: Path, threads):
    rng = np.random.default_rng(7)

    class Real(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = tf.Variable(rng.normal(size=(3000, 16)).astype(np.float32), name="items")

        @tf.function(input_signature=[tf.TensorSpec([None, 16], tf.float32, name="x")])
        def __call__(self, x):
            scores = tf.matmul(x, self.items, transpose_b=True)
            values, indices = tf.math.top_k(scores, 100)
            return {"values": values, "indices": indices}

    module = Real()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    sources = tables_of(tmp_path)
    tables = {name: source.table for name, source in sources.items()}
    servable = loaded(tmp_path, sources, layout_of("row_mod", tables, 4), threads)
    x = rng.normal(size=(20, 16)).astype(np.float32)
    got, expected = ask(servable, {"x": x}), module(tf.constant(x))
    np.testing.assert_allclose(got["values"], expected["values"], rtol=1e-5)
    scores = x.astype(np.float64) @ module.items.numpy().T.astype(np.float64)
    chosen = np.take_along_axis(scores, got["indices"], axis=1)
    np.testing.assert_allclose(chosen, expected["values"], rtol=1e-5)


@pytest.mark.parametrize(
    ("output", "x"),
    [
        ("scores", np.zeros((2, WIDTH + 1), np.float32)),
        ("items_first", np.zeros((2, WIDTH + 1), np.float32)),
        ("top_5_items", np.zeros((2, 2, WIDTH), np.float32)),
        ("top_5_items", np.zeros(WIDTH, np.float32)),
    ],
)
def test_queries_of_another_shape_are_refused_in_tensorflows_words(
    directory, sources, threads, output, x
):
    tables = {name: source.table for name, source in sources.items()}
    servable = loaded(directory, sources, layout_of("table", tables, 1), threads)
    with pytest.raises(InvalidArgument) as caught:
        ask(servable, NO_QUERIES | {"x": x}, output)
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session() as session:
        given, fixed = (tf.compat.v1.placeholder(tf.float32) for _ in range(2))
        items_first = output == "items_first"
        product = tf.raw_ops.MatMul(
            a=fixed if items_first else given,
            b=given if items_first else fixed,
            transpose_b=output != "scores",
        )
        table = np.zeros((WIDTH, CLASSES) if output == "scores" else (ITEMS, WIDTH))
        with pytest.raises(tf.errors.InvalidArgumentError) as original:
            session.run(product, {given: x, fixed: table})
    assert caught.value.message.partition("\n")[0] in original.value.message


class _Nonsense:
    """A shard whose answers are of another shape."""

    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        return LookupReply((np.full((1, 7), 9e9, np.float32),))


@pytest.mark.parametrize("output", ["scores", "top_5_items", "best"])
def test_an_answer_that_is_none_is_a_shard_that_is_not_there(directory, sources, threads, output):
    tables = {name: source.table for name, source in sources.items()}
    layout = layout_of("table", tables, 1)
    plan = ModelPlan("scores", 1, str(directory), ("serve",), layout, sources, "")
    servable = load_sharded(plan, [_Nonsense()], threads)
    with pytest.raises(Unavailable, match="shard 0 answered a scoring with"):
        ask(servable, ALL_EQUAL, output)


@pytest.mark.parametrize(("kind", "fits"), [("column", True), ("row_mod", False)])
def test_what_would_come_back_is_bounded(kind, fits):
    """A million queries: their best are few, their scores are not."""
    table = Table("kernel", "float32", WIDTH, (CLASSES * 100,))
    layout = layout_of(kind, {"kernel": table}, 2)
    scoring = Scoring(
        output="values:0",
        indices="indices:0",
        table="kernel",
        node="top_k",
        product="matmul",
        queries="x:0",
        axis=Axis.COLUMNS,
        pick=Pick.TOP_K,
        k=3,
    )
    queries = np.broadcast_to(np.zeros(WIDTH, np.float32), (1_000_000, WIDTH))
    prepared = PreparedScores(scoring, table, queries, None, (1_000_000,))
    partition = partitions_of(layout, {"kernel": table})["kernel"]
    if fits:
        assert [one.part.k for one in prepared.fragments(partition, 0)] == [3, 3]
    else:
        with pytest.raises(ResourceExhausted, match="1000000 queries against table 'kernel'"):
            prepared.fragments(partition, 0)


def test_a_two_tower_model_finds_its_users_items(tmp_path: Path, threads):
    """Rows of a table are the queries that the same table is scored with; then names by number."""
    rng = np.random.default_rng(9)

    class TwoTowers(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = tf.Variable(rng.normal(size=(500, 8)).astype(np.float32), name="items")
            self.names = tf.Variable([f"item {i}" for i in range(500)], name="names")

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.int64, name="seen")])
        def __call__(self, seen):
            user = tf.reduce_mean(tf.gather(self.items, seen), axis=1)
            scores, found = tf.math.top_k(tf.matmul(user, self.items, transpose_b=True), 10)
            return {"scores": scores, "names": tf.gather(self.names, found)}

    module = TwoTowers()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    sources = tables_of(tmp_path)
    tables = {name: source.table for name, source in sources.items()}
    for kind in SCORED:
        servable = loaded(tmp_path, sources, layout_of(kind, tables, 3), threads)
        seen = rng.integers(0, 500, (4, 3))
        got, expected = ask(servable, {"seen": seen}), module(tf.constant(seen))
        np.testing.assert_allclose(got["scores"], expected["scores"], rtol=1e-5)
        assert got["names"].tolist() == expected["names"].numpy().tolist()


def test_a_keras_classifier_answers_with_all_its_probabilities(tmp_path: Path, threads):
    keras.utils.set_random_seed(3)
    x = keras.Input((12,), name="x")
    hidden = keras.layers.Dense(8, activation="relu")(x)
    model = keras.Model(x, keras.layers.Dense(301, activation="softmax")(hidden))
    model.export(str(tmp_path), verbose=False)
    sources = tables_of(tmp_path)
    (table,) = (source.table for source in sources.values())
    assert (table.rows, table.columns) == (8, 301)
    servable = loaded(tmp_path, sources, layout_of("column", {table.name: table}, 3), threads)
    feeds = {"x": np.random.default_rng(4).normal(size=(5, 12)).astype(np.float32)}
    (got,) = ask(servable, feeds).values()
    np.testing.assert_allclose(got, model(feeds["x"]), rtol=1e-5, atol=1e-8)
