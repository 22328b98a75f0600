"""Lookups that running graphs make: TensorFlow's errors, deadlines, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.python.ops import script_ops

from shardserve.batching.errors import DeadlineExceeded, InvalidArgument, Unavailable
from shardserve.router.servable import RequestContext
from shardserve.router.session import Parallelism
from shardserve.router.sharded import WAITING_THREADS, ShardedServable, load_sharded
from shardserve.router.tracing import traced
from shardserve.shards.layout import Layout
from shardserve.shards.local import LocalChannel
from shardserve.shards.messages import LookupReply, LookupRequest
from shardserve.shards.model import ModelPlan
from shardserve.shards.shard import Shard
from tests.layouts import layout_of, random_layout
from tests.saved_models import Feeds
from tests.saved_models_flow import CASES, ROWS
from tests.saved_models_tf1 import numbers
from tests.sharded import ask, assert_same, served, tables_of

BY_NAME = {case.name: case for case in CASES}
BAD = 1 << 40


@pytest.fixture
def serve(saved_model, threads) -> Iterator[Callable[..., ShardedServable]]:
    """A case served under row_hash over two shards; closed in the end."""
    opened: list[ShardedServable] = []

    def load(name: str, channels=None) -> ShardedServable:
        sources = tables_of(saved_model(name))
        layout = layout_of("row_hash", {n: s.table for n, s in sources.items()}, 2)
        opened.append(served(saved_model(name), layout, sources, threads, channels))
        return opened[-1]

    yield load
    for servable in opened:
        asyncio.run(servable.close())


def branch_feeds(ids: list[int], which: int) -> Feeds:
    return {"ids": np.array(ids, np.int64), "which": np.array(which, np.int32)}


@pytest.mark.parametrize("name", ["branches", "greedy", "tf1_lowered_ref"])
def test_the_answer_is_tensorflows_under_any_layout(name, saved_model, threads, uncut):
    sources = tables_of(saved_model(name))
    tables = {table: source.table for table, source in sources.items()}
    scored = name == "greedy"

    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.integers(1, 4).flatmap(lambda n: random_layout(tables, n, hot_rows=not scored)),
        st.data(),
    )
    def check(layout: Layout, data: st.DataObject) -> None:
        servable = served(saved_model(name), layout, sources, threads)
        for _ in range(2):
            feeds = data.draw(BY_NAME[name].feeds)
            expected = uncut(name).answer("serving_default", feeds)
            assert_same(ask(servable, "serving_default", feeds), expected)
        asyncio.run(servable.close())

    check()


@pytest.mark.parametrize("threads_within", [-1, 2])
def test_graphs_that_run_on_threads_of_tensorflow_call_out_as_well(
    threads_within, saved_model, threads, uncut
):
    sources = tables_of(saved_model("mapped"))
    layout = layout_of("row_mod", {n: s.table for n, s in sources.items()}, 2)
    plan = ModelPlan("model", 1, str(saved_model("mapped")), ("serve",), layout, sources, "")
    channels = [LocalChannel(Shard.load(sources, plan.slices_of_shard(n))) for n in range(2)]
    servable = load_sharded(plan, channels, threads, Parallelism(2, threads_within))
    feeds = {"ids": np.arange(20).reshape(10, 2), "steps": np.array(3, np.int32)}
    expected = uncut("mapped").answer("serving_default", feeds)
    assert_same(ask(servable, "serving_default", feeds), expected)
    asyncio.run(servable.close())


def test_an_id_outside_the_table_is_refused_in_tensorflows_words(serve, uncut):
    feeds = branch_feeds([3, ROWS + 2], 1)
    with pytest.raises(tf.errors.InvalidArgumentError) as original:
        uncut("branches").answer("serving_default", feeds)
    with pytest.raises(InvalidArgument) as caught:
        ask(serve("branches"), "serving_default", feeds)
    words = f"indices[1] = {ROWS + 2} is not in [0, {ROWS})"
    assert caught.value.message.startswith(words)
    assert words in original.value.message


def some(servable: ShardedServable, feeds: Feeds, *outputs: str) -> Feeds:
    context = RequestContext("test", math.inf)
    return asyncio.run(servable.run("serving_default", feeds, outputs, context))


def test_an_id_outside_the_table_is_no_matter_in_a_branch_that_is_not_taken(serve):
    """`right` has ten rows more than `left`, which is not read where `which` is 0."""
    servable = serve("branches")
    got = some(servable, branch_feeds([ROWS + 2], 0), "either")["either"]
    assert got.tolist() == (-numbers(ROWS + 10)[[ROWS + 2]]).tolist()
    with pytest.raises(InvalidArgument, match=f"= {ROWS + 2} is not in"):
        some(servable, branch_feeds([ROWS + 2], 1), "either")


def test_a_loop_of_no_rounds_looks_nothing_up(serve):
    feeds = {"ids": np.array([[BAD, -5]]), "steps": np.array(0, np.int32)}
    servable = serve("mapped")

    assert some(servable, feeds, "chased")["chased"].tolist() == [[BAD, -5]]
    with pytest.raises(InvalidArgument, match=r"indices\[0,0\] = 1099511627776 is not in"):
        some(servable, feeds | {"steps": np.array(1, np.int32)}, "chased")


class _Gone:
    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        raise Unavailable("shard 7 has no live replica")


class _Silent:
    """Never answers; notes when it was asked, and when the asking was given up."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.given_up = threading.Event()

    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        self.asked.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.given_up.set()
        raise AssertionError


FIRST = {"first": np.array([1, 2], np.int64)}


def test_an_error_of_a_shard_keeps_its_code_and_its_words(serve):
    servable = serve("greedy", [_Gone(), _Gone()])
    with pytest.raises(Unavailable) as caught:
        ask(servable, "serving_default", FIRST)
    assert caught.value.message == "shard 7 has no live replica"


def test_a_silent_shard_ends_the_request_at_its_deadline_and_frees_the_thread(serve):
    silent = _Silent()
    servable = serve("greedy", [silent, silent])
    context = RequestContext("test", time.monotonic() + 0.3)

    async def late() -> None:
        await servable.run("serving_default", FIRST, ("tokens",), context)

    with pytest.raises(DeadlineExceeded):
        asyncio.run(late())
    assert silent.asked.is_set()
    assert silent.given_up.wait(10)
    asyncio.run(servable.close())  # It joins the threads of stages that call out.


def test_a_request_that_is_cancelled_cancels_its_call_out(serve):
    silent = _Silent()
    servable = serve("greedy", [silent, silent])

    async def cancelled() -> None:
        context = RequestContext("test", math.inf)
        run = servable.run("serving_default", FIRST, ("tokens",), context)
        request = asyncio.ensure_future(run)
        await asyncio.to_thread(silent.asked.wait, 10)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert await asyncio.to_thread(silent.given_up.wait, 10)

    asyncio.run(cancelled())
    asyncio.run(servable.close())


def test_requests_at_once_get_each_its_own_answer(serve, uncut):
    servable = serve("greedy")
    feeds = [{"first": np.array([i, i + 1], np.int64)} for i in range(3 * WAITING_THREADS)]

    async def all_at_once() -> list[Feeds]:
        wanted = tuple(servable.signatures["serving_default"].outputs)
        context = RequestContext("test", math.inf)
        runs = [servable.run("serving_default", one, wanted, context) for one in feeds]
        return await asyncio.gather(*runs)

    for one, got in zip(feeds, asyncio.run(all_at_once()), strict=True):
        assert_same(got, uncut("greedy").answer("serving_default", one))


def test_the_time_of_call_outs_is_told_and_not_told_twice(serve):
    servable = serve("greedy")
    context = RequestContext("test", math.inf)
    started = time.monotonic()
    asyncio.run(servable.run("serving_default", FIRST, ("tokens",), context))
    elapsed = time.monotonic() - started
    assert {"lookup", "wire", "dense"} <= context.seconds.keys()
    assert all(seconds >= 0 for seconds in context.seconds.values())
    assert sum(context.seconds.values()) <= elapsed


def test_a_traced_request_is_told_what_each_shard_did_for_its_call_outs(serve):
    servable = serve("branches")
    context = traced(RequestContext("test", math.inf))
    feeds = branch_feeds(list(range(ROWS)), 1)
    asyncio.run(
        servable.run(
            "serving_default", feeds, tuple(servable.signatures["serving_default"].outputs), context
        )
    )

    assert {work.name for work in context.remote} == {"shard 0", "shard 1"}
    # Each stage is told of once, not by the call-out and by who waited for it.
    names = [one.stage for one in context.spent]
    assert names.count("lookup") == names.count("wire") == 1


def test_what_tensorflow_calls_is_gone_with_the_servable(saved_model, threads):
    gc.collect()
    before = script_ops._py_funcs.size()
    sources = tables_of(saved_model("greedy"))
    layout = layout_of("column", {n: s.table for n, s in sources.items()}, 2)
    servable = served(saved_model("greedy"), layout, sources, threads)
    ask(servable, "serving_default", FIRST)
    assert script_ops._py_funcs.size() > before
    asyncio.run(servable.close())
    del servable
    gc.collect()
    assert script_ops._py_funcs.size() == before
