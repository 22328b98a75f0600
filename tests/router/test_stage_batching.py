"""Stages that batch on their own: concurrent requests each get what TensorFlow answers them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardserve.batching.driver import BatchDevice
from shardserve.batching.errors import InvalidArgument, ServingError
from shardserve.batching.parameters import BatchingParameters
from shardserve.router.servable import RequestContext
from shardserve.router.sharded import ShardedServable, StageBatching, load_sharded
from shardserve.router.tracing import traced
from shardserve.shards.bundle import open_bundle
from shardserve.shards.cut.cut import CutRule, cut_saved_model
from shardserve.shards.cut.planning import table_sources
from shardserve.shards.cut.saved_model import checkpoint_prefix
from shardserve.shards.local import LocalChannel
from shardserve.shards.model import ModelPlan
from shardserve.shards.shard import Shard
from shardserve.shards.stages import Stages
from tests.layouts import layout_of
from tests.saved_models import CASES, THRESHOLD, Feeds
from tests.sharded import assert_same_sums, tables_of
from tests.uncut import Uncut

#: Models whose inputs all have a row for each example.
NAMES = ("gathers", "hand_written", "keras_embedding", "keras_masked", "keras_text")
BY_NAME = {case.name: case for case in CASES}
DENSE = BatchingParameters(max_batch_size=64, max_enqueued_batches=100)
PADDED = BatchingParameters(
    max_batch_size=64, max_enqueued_batches=100, allowed_batch_sizes=(3, 8, 64)
)

BATCHING = {
    "dense": Stages(dense=DENSE),
    "dense, padded": Stages(dense=PADDED),
    "ids and dense": Stages(ids=DENSE, dense=DENSE),
    "only ids": Stages(ids=PADDED),
}


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The one event loop of all requests."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def serve(saved_model, threads, runner) -> Iterator[Callable[..., ShardedServable]]:
    loaded = []

    def load(name: str, kind: str, stages: Stages, slots: int = 2) -> ShardedServable:
        directory = saved_model(name)
        sources = tables_of(directory)
        layout = layout_of(kind, {name: source.table for name, source in sources.items()}, 2)
        plan = ModelPlan(name, 1, str(directory), ("serve",), layout, sources, "", stages)
        shards = [Shard.load(sources, layout.slices_of_shard(shard)) for shard in range(2)]
        channels = [LocalChannel(shard) for shard in shards]
        batching = StageBatching(BatchDevice(slots))
        loaded.append(load_sharded(plan, channels, threads, batching=batching))
        return loaded[-1]

    yield load
    for servable in loaded:
        runner.run(servable.close())


async def ask_all(
    servable: ShardedServable, requests: Sequence[Feeds], seconds: float = math.inf
) -> list:
    outputs = tuple(servable.signatures["serving_default"].outputs)
    deadline = time.monotonic() + seconds
    asked = (
        servable.run("serving_default", feeds, outputs, RequestContext("test", deadline))
        for feeds in requests
    )
    return await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize("how", BATCHING)
@pytest.mark.parametrize("name", NAMES)
def test_concurrent_requests_get_what_tensorflow_answers_each(
    name, how, serve, saved_model, runner
):
    servable = serve(name, "row_hash", BATCHING[how])
    uncut = Uncut(saved_model(name))

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(BY_NAME[name].feeds, min_size=1, max_size=5))
    def check(requests: list[Feeds]) -> None:
        answers = runner.run(ask_all(servable, requests))
        for feeds, answer in zip(requests, answers, strict=True):
            assert_same_sums(answer, uncut.answer("serving_default", feeds))

    check()
    uncut.close()


def test_a_batch_tells_each_of_its_traced_requests_what_the_shards_did(serve, runner):
    servable = serve("keras_embedding", "row_range", BATCHING["ids and dense"])
    feeds = {"ids": np.arange(5, dtype=np.int32)[None] * 2, "extra": np.ones((1, 3), np.float32)}
    contexts = [traced(RequestContext(str(n), math.inf)) for n in range(3)]
    plain = RequestContext("plain", math.inf)

    async def ask() -> None:
        outputs = tuple(servable.signatures["serving_default"].outputs)
        asked = (servable.run("serving_default", feeds, outputs, one) for one in (*contexts, plain))
        await asyncio.gather(*asked)

    runner.run(ask())
    for context in contexts:
        assert {work.name for work in context.remote} <= {"shard 0", "shard 1"}
        assert context.remote


@pytest.mark.parametrize("kind", ["column", "row_range", "replicated"])
def test_other_layouts_batch_alike(kind, serve, saved_model, runner):
    servable = serve("keras_embedding", kind, BATCHING["ids and dense"])
    uncut = Uncut(saved_model("keras_embedding"))
    requests = [
        {"ids": np.full((n, 5), n, np.int32), "extra": np.ones((n, 3), np.float32)}
        for n in (1, 2, 3, 1)
    ]
    answers = runner.run(ask_all(servable, requests))
    for feeds, answer in zip(requests, answers, strict=True):
        assert_same_sums(answer, uncut.answer("serving_default", feeds))
    uncut.close()


def test_a_bad_id_fails_its_request_alone(serve, saved_model, runner):
    servable = serve("gathers", "row_mod", BATCHING["dense"])
    uncut = Uncut(saved_model("gathers"))
    good = {
        "ids": np.array([1, 2], np.int64),
        "grid": np.zeros((2, 3), np.int32),
        "chain": np.array([0, 149], np.int64),
    }
    bad = good | {"ids": np.array([1, 90], np.int64)}
    answers = runner.run(ask_all(servable, [good, bad, good]))
    assert isinstance(answers[1], InvalidArgument)
    assert "indices[1] = 90 is not in [0, 90)" in answers[1].message
    for answer in (answers[0], answers[2]):
        assert_same_sums(answer, uncut.answer("serving_default", good))
    uncut.close()


@pytest.mark.parametrize("name", ["gathers", "hand_written"])
def test_inputs_of_different_rows_are_refused_in_tensorflow_servings_words(name, serve, runner):
    """Whether it is joined at the last stage or at the front."""
    servable = serve(name, "row_mod", BATCHING["dense"])
    first, *others = sorted(servable.signatures["serving_default"].inputs)
    feeds = {alias: np.zeros((2, 4), np.int32) for alias in others}
    answers = runner.run(ask_all(servable, [{first: np.zeros((3, 4), np.int32), **feeds}]))
    assert isinstance(answers[0], InvalidArgument)
    assert "equal 0th-dimension size" in answers[0].message


def why_at_front(directory: Path) -> str:
    cut = cut_saved_model(directory, CutRule(threshold=THRESHOLD))
    return "; ".join(cut.why_not_joined(cut.programs["serving_default"].dense.feeds))


@pytest.mark.parametrize("name", NAMES)
def test_these_models_are_joined_before_the_last_stage(name, saved_model):
    assert not why_at_front(saved_model(name))


class Segments(tf.Module):
    """Bags by segments that count rows of one request: the dense stage is fed what cannot join."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(np.arange(400, dtype=np.float32).reshape(100, 4), name="table")

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.int64, name="ids")])
    def __call__(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        flat = tf.reshape(ids, [-1])
        segments = tf.repeat(tf.range(tf.shape(ids)[0]), 3)
        return {"y": tf.math.segment_sum(tf.gather(self.table, flat), segments) * 2.0}


def test_a_model_whose_last_stage_cannot_be_joined_is_joined_at_the_front(
    tmp_path, threads, runner
):
    module = Segments()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    assert "is not known to keep rows apart" in why_at_front(tmp_path)
    cut = cut_saved_model(tmp_path, CutRule(threshold=THRESHOLD))
    sources = table_sources(open_bundle(str(checkpoint_prefix(tmp_path))), cut.tables)
    layout = layout_of("row_hash", {name: source.table for name, source in sources.items()}, 2)
    stages = Stages(dense=PADDED)
    plan = ModelPlan("m", 1, str(tmp_path), ("serve",), layout, sources, "", stages)
    shards = [Shard.load(sources, layout.slices_of_shard(shard)) for shard in range(2)]
    servable = load_sharded(plan, [LocalChannel(shard) for shard in shards], threads)
    uncut = Uncut(tmp_path)
    requests = [{"ids": np.full((n, 3), n, np.int64)} for n in (1, 2, 3, 1, 4)]
    answers = runner.run(ask_all(servable, requests))
    for feeds, answer in zip(requests, answers, strict=True):
        assert_same_sums(answer, uncut.answer("serving_default", feeds))
    runner.run(servable.close())
    uncut.close()


def test_requests_are_joined_before_the_last_stage(serve, saved_model, runner):
    """The dense stage runs less often than there are requests."""
    servable = serve("keras_embedding", "row_hash", BATCHING["dense"], slots=1)
    feeds = {"ids": np.ones((1, 5), np.int32), "extra": np.ones((1, 3), np.float32)}
    contexts = [RequestContext(str(n), math.inf) for n in range(12)]

    async def run() -> None:
        outputs = tuple(servable.signatures["serving_default"].outputs)
        await asyncio.gather(
            *(servable.run("serving_default", feeds, outputs, one) for one in contexts)
        )

    runner.run(run())
    counts = servable.stage_counts()["keras_embedding/dense"]
    assert counts.tasks == counts.rows == len(contexts)
    assert counts.batches < len(contexts)
    assert all(one.seconds.keys() >= {"queue", "dense", "lookup"} for one in contexts)


def test_a_full_queue_refuses_at_once_in_tensorflow_servings_words(serve, runner):
    small = BatchingParameters(max_batch_size=1, max_enqueued_batches=1)
    servable = serve("keras_embedding", "row_hash", Stages(dense=small), slots=1)
    feeds = {"ids": np.ones((1, 5), np.int32), "extra": np.ones((1, 3), np.float32)}
    answers = runner.run(ask_all(servable, [feeds] * 20))
    refused = [one for one in answers if isinstance(one, ServingError)]
    assert refused
    assert all("currently 1 batches enqueued" in one.message for one in refused)
    assert len(refused) < len(answers)


def test_a_request_too_large_for_a_batch_is_refused(serve, runner):
    servable = serve("keras_embedding", "row_hash", Stages(dense=BatchingParameters(4)))
    feeds = {"ids": np.ones((5, 5), np.int32), "extra": np.ones((5, 3), np.float32)}
    (answer,) = runner.run(ask_all(servable, [feeds]))
    assert isinstance(answer, InvalidArgument)
    assert "larger than maximum input batch size 4" in answer.message
