"""A sharded servable answers what TensorFlow answers for the uncut model, under every layout."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import DeadlineExceeded, InvalidArgument, Unavailable
from shardserve.router.servable import RequestContext
from shardserve.router.sharded import ShardedServable, load_sharded
from shardserve.shards.bundle import open_bundle
from shardserve.shards.cut.cut import CutRule, cut_saved_model
from shardserve.shards.cut.planning import table_sources
from shardserve.shards.cut.saved_model import checkpoint_prefix
from shardserve.shards.layout import Layout
from shardserve.shards.local import LocalChannel
from shardserve.shards.messages import LookupReply, LookupRequest
from shardserve.shards.model import ModelPlan
from shardserve.shards.shard import Shard
from tests.layouts import LAYOUTS, layout_of, random_layout
from tests.saved_models import CASES, THRESHOLD, Feeds
from tests.sharded import assert_same_sums

SHARDS = 3


@pytest.fixture(scope="module")
def oracle(saved_model):
    """TensorFlow's own answer for the uncut model."""

    @functools.cache
    def loaded(name: str):
        model = tf.saved_model.load(str(saved_model(name)))
        return model, model.signatures["serving_default"]

    def answer(name: str, feeds: Feeds) -> dict[str, np.ndarray]:
        outputs = loaded(name)[1](**{k: tf.constant(v) for k, v in feeds.items()})
        return {alias: value.numpy() for alias, value in outputs.items()}

    return answer


@pytest.fixture(scope="module")
def serve(saved_model, sources, threads) -> Callable[[str, Layout], ShardedServable]:
    """A case served under a layout, its shards in this process."""

    def load(name: str, layout: Layout) -> ShardedServable:
        plan = ModelPlan(name, 1, str(saved_model(name)), ("serve",), layout, sources(name), "")
        channels = [
            LocalChannel(Shard.load(plan.sources, layout.slices_of_shard(shard)))
            for shard in range(layout.shards)
        ]
        return load_sharded(plan, channels, threads)

    return load


def context(seconds: float = 60.0) -> RequestContext:
    return RequestContext("test", time.monotonic() + seconds)


def ask(servable: ShardedServable, feeds: Feeds, outputs: tuple[str, ...] = ()) -> Feeds:
    wanted = outputs or tuple(servable.signatures["serving_default"].outputs)
    return asyncio.run(servable.run("serving_default", feeds, wanted, context()))


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_answer_is_tensorflows_under_each_layout(case, kind, serve, sources, oracle):
    tables = {name: source.table for name, source in sources(case.name).items()}
    servable = serve(case.name, layout_of(kind, tables, SHARDS))

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(case.feeds)
    def check(feeds: Feeds) -> None:
        assert_same_sums(ask(servable, feeds), oracle(case.name, feeds))

    check()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_answer_is_tensorflows_under_random_layouts(case, serve, sources, oracle):
    tables = {name: source.table for name, source in sources(case.name).items()}

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(1, 4).flatmap(lambda n: random_layout(tables, n)), st.data())
    def check(layout: Layout, data: st.DataObject) -> None:
        servable = serve(case.name, layout)
        for _ in range(3):
            feeds = data.draw(case.feeds)
            assert_same_sums(ask(servable, feeds), oracle(case.name, feeds))

    check()


@pytest.fixture(scope="module")
def gathers(serve, sources) -> ShardedServable:
    tables = {name: source.table for name, source in sources("gathers").items()}
    return serve("gathers", layout_of("row_hash", tables, SHARDS))


def gather_feeds(**changes: list) -> Feeds:
    feeds = {
        "ids": np.array([1, 2], np.int64),
        "grid": np.zeros((2, 3), np.int32),
        "chain": np.array([0, 149], np.int64),
    }
    return feeds | {k: np.array(v, feeds[k].dtype) for k, v in changes.items()}


def test_only_the_lookups_that_the_outputs_need_are_made(gathers, oracle):
    feeds = gather_feeds(grid=[[0, 0, 0], [0, 0, 4000]])
    got = ask(gathers, feeds, ("rows", "echo"))
    expected = oracle("gathers", gather_feeds())
    assert_same_sums(got, {alias: expected[alias] for alias in ("rows", "echo")})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": [1, 90]}, "indices[1] = 90 is not in [0, 90)"),
        ({"ids": [-1, 5]}, "indices[0] = -1 is not in [0, 90)"),
        ({"grid": [[0, 0, 0], [0, -7, 0]]}, "indices[1,1] = -7 is not in [0, "),
        ({"chain": [0, 1 << 40]}, "indices[1] = 1099511627776 is not in [0, 150)"),
    ],
)
def test_an_id_outside_the_table_is_refused_in_tensorflows_words(gathers, oracle, changes, words):
    feeds = gather_feeds(**changes)
    with pytest.raises(InvalidArgument) as caught:
        ask(gathers, feeds)
    assert caught.value.message.startswith(words)
    with pytest.raises(tf.errors.InvalidArgumentError) as original:
        oracle("gathers", feeds)
    assert words in original.value.message


def test_a_bad_id_of_a_sparse_lookup_is_named_by_its_place_among_the_different_ids(
    serve, sources, oracle
):
    tables = {name: source.table for name, source in sources("bags").items()}
    servable = serve("bags", layout_of("row_mod", tables, 2))
    feeds = {
        "indices": np.array([[0, 0], [0, 1], [0, 2], [1, 0]], np.int64),
        "values": np.array([7, 7, 3, 110], np.int64),
        "weights": np.ones(4, np.float32),
        "rows": np.zeros(2, np.int64),
    }
    with pytest.raises(InvalidArgument) as caught:
        ask(servable, feeds)
    assert caught.value.message.startswith("indices[2] = 110 is not in [0, 110)")
    # The signature holds both weighted lookups, which TensorFlow gathers and names by the place
    # among the different ids, and plain ones, which Grappler fuses into one kernel that names the
    # place in the values. They run in parallel, and the first to fail is the error.
    either = r"indices\[2\] = 110 is not in|indices\[3\] == 110 out of range"
    with pytest.raises(tf.errors.InvalidArgumentError, match=either):
        oracle("bags", feeds)


def test_a_graphs_own_error_reaches_the_client_with_its_code(gathers):
    feeds = gather_feeds() | {"grid": np.zeros((2, 2, 2), np.int32)}
    with pytest.raises(InvalidArgument):
        ask(gathers, feeds | {"ids": np.zeros((2, 2), np.int64)}, ("scores", "chained", "deep"))


class _Silent:
    """A shard that never answers."""

    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        await asyncio.sleep(max(0.0, deadline - time.monotonic()))
        raise DeadlineExceeded("no answer in time")


class _Gone:
    """A shard that cannot be reached."""

    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        raise Unavailable("shard 0 has no live replica")


def _with_channel(saved_model, sources, threads, channel) -> ShardedServable:
    tables = {name: source.table for name, source in sources("gathers").items()}
    layout = layout_of("row_range", tables, 1)
    directory = str(saved_model("gathers"))
    plan = ModelPlan("gathers", 1, directory, ("serve",), layout, sources("gathers"), "")
    return load_sharded(plan, [channel], threads)


def test_a_shard_that_is_gone_makes_the_request_unavailable(saved_model, sources, threads):
    servable = _with_channel(saved_model, sources, threads, _Gone())
    with pytest.raises(Unavailable, match="shard 0"):
        ask(servable, gather_feeds())


def test_a_silent_shard_ends_the_request_at_its_deadline(saved_model, sources, threads):
    servable = _with_channel(saved_model, sources, threads, _Silent())
    request = servable.run("serving_default", gather_feeds(), ("rows",), context(0.05))
    with pytest.raises(DeadlineExceeded):
        asyncio.run(request)


def test_the_time_of_each_stage_is_told(gathers):
    spent = context()
    asyncio.run(gathers.run("serving_default", gather_feeds(), ("scores", "chained"), spent))
    assert {"ids", "lookup", "wire", "merge", "dense"} <= spent.seconds.keys()
    assert all(seconds >= 0 for seconds in spent.seconds.values())


def test_requests_at_once_get_each_its_own_answer(gathers, oracle):
    feeds = [gather_feeds(ids=[i, 89 - i], chain=[i, i + 1]) for i in range(40)]

    async def all_at_once() -> list[Feeds]:
        wanted = tuple(gathers.signatures["serving_default"].outputs)
        runs = [gathers.run("serving_default", one, wanted, context()) for one in feeds]
        return await asyncio.gather(*runs)

    for one, got in zip(feeds, asyncio.run(all_at_once()), strict=True):
        assert_same_sums(got, oracle("gathers", one))


class _Draws(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(tf.reshape(tf.range(4000.0), [1000, 4]), name="table")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def __call__(self, x):
        drawn = tf.random.uniform(tf.shape(x), 0, 1000, tf.int64)
        tf.debugging.assert_non_negative(x, message="x must not be negative")
        return {"drawn": drawn, "rows": tf.gather(self.table, drawn)}


def test_a_random_draw_is_made_once_and_an_assert_still_holds(tmp_path: Path, threads):
    module = _Draws()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    cut = cut_saved_model(tmp_path, CutRule(threshold=THRESHOLD))
    found = table_sources(open_bundle(str(checkpoint_prefix(tmp_path))), cut.tables)
    layout = layout_of("row_hash", {n: s.table for n, s in found.items()}, 2)
    plan = ModelPlan("draws", 1, str(tmp_path), ("serve",), layout, found, "")
    shards = [Shard.load(found, layout.slices_of_shard(shard)) for shard in range(2)]
    servable = load_sharded(plan, [LocalChannel(shard) for shard in shards], threads)
    got = ask(servable, {"x": np.ones(50, np.float32)})
    assert got["rows"][:, 0].tolist() == (got["drawn"] * 4.0).tolist()
    with pytest.raises(InvalidArgument, match="x must not be negative"):
        ask(servable, {"x": np.array([-1.0], np.float32)})
