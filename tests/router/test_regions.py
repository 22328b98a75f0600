"""Regions answer what TensorFlow answers for one request, and requests meet in them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardserve.batching.driver import BatchDevice
from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import BatchingParameters
from shardserve.router.servable import RequestContext
from shardserve.router.sharded import ShardedServable, StageBatching, load_sharded
from shardserve.shards.cut.cut import CutRule, cut_saved_model
from shardserve.shards.layout import Layout
from shardserve.shards.local import LocalChannel
from shardserve.shards.model import ModelPlan
from shardserve.shards.regions import Region
from shardserve.shards.shard import Shard
from shardserve.shards.stages import Stages
from tests.layouts import layout_of
from tests.region_models import ROWS, THRESHOLD
from tests.saved_models import Feeds, float_array, int_array
from tests.sharded import assert_same, tables_of

WHOLE = "whole"
LAYOUTS = (WHOLE, "row_range", "row_hash", "column")

Request = tuple[str, Feeds]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The one event loop of all requests."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def serve(saved_model, threads) -> Iterator[Callable[..., ShardedServable]]:
    """A model served under a layout, its shards in this process."""
    loaded = []

    def load(name: str, kind: str, regions: Sequence[Region] = (), **stages) -> ShardedServable:
        plan = plan_of(saved_model(name), kind, Stages(regions=tuple(regions), **stages))
        shards = [Shard.load(plan.sources, plan.slices_of_shard(n)) for n in range(2)]
        channels = [LocalChannel(shard) for shard in shards]
        batching = StageBatching(BatchDevice(2))
        loaded.append(load_sharded(plan, channels, threads, batching=batching))
        return loaded[-1]

    yield load
    for servable in loaded:
        asyncio.run(servable.close())


def plan_of(directory: Path, kind: str, stages: Stages) -> ModelPlan:
    sources = {}
    if kind != WHOLE:
        sources = tables_of(directory, THRESHOLD)
    tables = {name: source.table for name, source in sources.items()}
    layout = layout_of(kind, tables, 2) if tables else Layout(2, 1, {})
    return ModelPlan("model", 1, str(directory), ("serve",), layout, sources, "", stages)


async def ask(servable: ShardedServable, request: Request) -> Feeds:
    signature, feeds = request
    outputs = tuple(servable.signatures[signature].outputs)
    return await servable.run(signature, feeds, outputs, RequestContext("test", math.inf))


async def ask_all(servable: ShardedServable, requests: Sequence[Request]) -> list:
    return await asyncio.gather(*(ask(servable, one) for one in requests), return_exceptions=True)


@st.composite
def ids(draw: st.DrawFn, *inner: int) -> Feeds:
    return {"ids": draw(int_array(0, ROWS, (draw(st.integers(1, 4)), *inner), np.int64))}


@st.composite
def floats(draw: st.DrawFn) -> Feeds:
    return {"x": draw(float_array((draw(st.integers(1, 4)), 4)))}


@st.composite
def scaled(draw: st.DrawFn) -> Feeds:
    x = np.abs(draw(float_array((draw(st.integers(1, 4)), 4))))
    return {"x": x, "scale": np.float32(draw(st.sampled_from([0.5, 2.0])))}


@st.composite
def paired(draw: st.DrawFn) -> Feeds:
    rows = draw(st.integers(1, 4))
    words = draw(st.lists(st.sampled_from([b"a", b"bc", b""]), min_size=rows, max_size=rows))
    return {"x": draw(float_array((rows, 4))), "words": np.array(words, object)}


@st.composite
def plain_feeds(draw: st.DrawFn) -> Feeds:
    rows = draw(st.integers(1, 4))
    x = draw(float_array((rows, 2)))
    return {"ids": draw(int_array(-ROWS, ROWS, (rows,), np.int64)), "x": x}


REQUESTS: dict[str, st.SearchStrategy[Request]] = {
    "marked": st.one_of(
        st.tuples(st.just("serving_default"), ids()),
        st.tuples(st.just("dense"), floats()),
        st.tuples(st.just("looking_up"), ids(3)),
        st.tuples(st.just("before"), ids()),
    ),
    "captures": st.one_of(
        st.tuples(st.just("serving_default"), scaled()),
        st.tuples(st.just("nested"), floats()),
        st.tuples(st.just("halved"), floats()),
    ),
    "pairs": st.tuples(st.just("serving_default"), paired()),
    "plain": st.tuples(st.just("serving_default"), plain_feeds()),
}

few = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("name", ["marked", "captures", "pairs"])
def test_concurrent_requests_get_what_tensorflow_answers_each(name, kind, serve, uncut, runner):
    servable = serve(name, kind)

    @few
    @given(st.lists(REQUESTS[name], min_size=1, max_size=6))
    def check(requests: list[Request]) -> None:
        answers = runner.run(ask_all(servable, requests))
        for request, answer in zip(requests, answers, strict=True):
            assert_same(answer, uncut(name).answer(*request))

    check()


def test_requests_of_two_signatures_meet_in_the_region_of_one_function(serve, runner):
    servable = serve("marked", WHOLE)
    requests = [
        (name, {"x": np.zeros(rows, np.float32)})
        for rows in (1, 2, 3)
        for name in ("counted", "counted_too")
    ]

    async def seen() -> list[int]:
        # Both slots are taken first: what comes after waits, and goes together.
        found = await ask_all(servable, requests)
        return [int(answer["rows"][0]) for answer in found]

    rows = runner.run(seen())
    assert max(rows) > 3, rows


def test_one_bad_request_fails_alone(serve, uncut, runner):
    servable = serve("marked", "row_hash")
    good = [("dense", {"x": np.full((2, 4), n, np.float32)}) for n in range(5)]
    bad = ("dense", {"x": np.full((2, 4), 1e7, np.float32)})
    answers = runner.run(ask_all(servable, [*good[:3], bad, *good[3:]]))
    failed = answers.pop(3)
    assert isinstance(failed, InvalidArgument)
    assert "too large" in failed.message
    for request, answer in zip(good, answers, strict=True):
        assert_same(answer, uncut("marked").answer(*request))


def test_inputs_of_a_region_that_disagree_in_rows_are_refused(serve, runner):
    servable = serve("pairs", "row_mod")
    feeds = {"x": np.zeros((2, 4), np.float32), "words": np.array([b"a"], object)}
    with pytest.raises(InvalidArgument, match="equal 0th-dimension size"):
        runner.run(ask(servable, ("serving_default", feeds)))


def named(name: str, inputs: Sequence[str], outputs: Sequence[str], **options) -> Region:
    batching = BatchingParameters(max_batch_size=16, max_enqueued_batches=100)
    return Region(name, full(inputs), full(outputs), batching, **options)


def full(names: Sequence[str]) -> tuple[str, ...]:
    """Names of `region_models.Plain` as they are in the graph."""
    inside = {"joined", "hidden", "scores", "shifted", "log_x", "concat", "Abs", "Gather"}
    scope = "StatefulPartitionedCall/StatefulPartitionedCall/"
    return tuple(scope + name if name in inside else name for name in names)


NAMED = {
    "a tower": [named("tower", ["joined"], ["scores"])],
    "up to an output, by its alias": [replace(named("r", ["joined"], []), outputs=("scores",))],
    "two in a row": [
        named("first", ["joined"], ["hidden"]),
        named("second", ["hidden"], ["scores"]),
    ],
    "two in a row, the second first": [
        named("second", ["hidden"], ["scores"]),
        named("first", ["joined"], ["hidden"]),
    ],
    "a lookup inside": [named("embed", ["ids"], ["Gather"])],
    "all of it": [
        named(
            "model",
            ["ids", "serving_default_x:0"],
            ["StatefulPartitionedCall:0", "StatefulPartitionedCall:1"],
        )
    ],
    "the ids": [named("ids_of", ["serving_default_ids"], ["shifted"])],
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("which", NAMED)
def test_a_named_region_answers_as_the_model_does(which, kind, serve, uncut, runner):
    servable = serve("plain", kind, NAMED[which])

    @few
    @given(st.lists(REQUESTS["plain"], min_size=1, max_size=6))
    def check(requests: list[Request]) -> None:
        answers = runner.run(ask_all(servable, requests))
        for request, answer in zip(requests, answers, strict=True):
            assert_same(answer, uncut("plain").answer(*request))

    check()


@pytest.mark.parametrize("kind", [WHOLE, "row_mod"])
def test_a_named_region_may_hold_marked_ones(kind, serve, uncut, runner):
    outer = Region("outer", ("looking_up:ids",), ("looking_up:high", "looking_up:pooled"))
    servable = serve("marked", kind, [outer])
    requests = [
        ("looking_up", {"ids": np.full((rows, 3), rows, np.int64)}) for rows in (1, 2, 3, 1)
    ]
    answers = runner.run(ask_all(servable, requests))
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, uncut("marked").answer(*request))


def test_an_alias_of_several_signatures_has_to_be_named_with_its_own(saved_model):
    region = Region("r", ("ids",), ("looking_up:high",))
    with pytest.raises(InvalidArgument, match="write it as SIGNATURE:ids"):
        cut_saved_model(saved_model("marked"), CutRule(threshold=THRESHOLD), regions=[region])


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ([named("r", ["Gather"], ["scores"])], "not closed: .*log_x:0 -> .*joined enters it"),
        (
            [named("r", ["Abs"], ["joined"])],
            "not closed: .*Gather:0 -> .*joined enters it",
        ),
        ([named("r", ["serving_default_x"], ["log_x"])], "not closed: .*Abs:0 -> .*Sum leaves it"),
        ([named("r", ["joined"], ["log_x"])], "log_x:0 -> its outputs enters it"),
        ([named("r", ["joined", "log_x"], ["scores"])], "its input .*log_x:0 leads to none"),
        ([named("r", ["joined"], ["skores"])], "has no tensor 'skores'; there is .*scores"),
        ([named("r", ["nothing_like_it"], ["scores"])], "has no tensor 'nothing_like_it'"),
        (
            [named("one", ["joined"], ["hidden"]), named("two", ["concat"], ["scores"])],
            "region 'two'|regions 'one' and 'two'",
        ),
        (
            [named("one", ["joined"], ["scores"]), named("two", ["joined"], ["hidden"])],
            "regions 'one' and 'two' overlap: .*hidden|regions 'one' and 'two' overlap",
        ),
        ([named("r", ["joined"], ["joined"])], "is its input and its output"),
    ],
)
def test_a_region_that_is_none_is_refused_and_the_culprit_named(regions, words, saved_model):
    with pytest.raises(InvalidArgument, match=words):
        cut_saved_model(saved_model("plain"), CutRule(threshold=THRESHOLD), regions=regions)
