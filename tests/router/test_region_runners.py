"""Regions run alike by whoever runs them: in this process, or behind a stage actor's stream."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shardserve.batching.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from shardserve.router.remote_stage import RemoteStage, remote_stages
from shardserve.router.servable import Array, RequestContext
from shardserve.router.session import Parallelism, StageThreads
from shardserve.router.stage_host import StageHost
from shardserve.router.stage_loading import host_of, load_stages
from shardserve.router.stage_runner import StageRunner
from shardserve.router.tracing import traced
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.model import ModelPlan, PlanOptions
from shardserve.shards.stage_groups import stage_name
from shardserve.shards.stages import BatchingOptions
from tests import stage_models
from tests.shards.plane import until
from tests.shards.stage_plane import channel_to, stages
from tests.stage_models import CLEAN, TOWER
from tests.uncut import Uncut

BATCHING = {"max_batch_size": 16, "batch_timeout_micros": 0, "max_enqueued_batches": 100}
KINDS = ("local", "remote")
LONG = 60.0
STAGE = stage_name("model", 1, TOWER)


@pytest.fixture(scope="module")
def threads() -> Iterator[StageThreads]:
    threads = StageThreads(1)
    yield threads
    threads.close()


@pytest.fixture(scope="module")
def directory(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("staged")


def plan_of(directory: Path, tmp_path: Path, **tower: object) -> ModelPlan:
    """A plan with both regions on the actors of one group."""
    alike = {"batching": {**BATCHING, **tower}, "actors": {"group": "both"}}
    file = stage_models.write_stages(tmp_path / "stages.yaml", directory, alike, alike)
    options = PlanOptions(batching=BatchingOptions(stages_file=file))
    return plan_model("model", 1, directory, options)


def hosted(plan: ModelPlan, threads: StageThreads) -> StageHost:
    (group,) = plan.stage_groups
    return host_of((load_stages(plan, group, threads, Parallelism()), ()))


@asynccontextmanager
async def runners(
    kind: str, plan: ModelPlan, threads: StageThreads
) -> AsyncIterator[dict[str, StageRunner]]:
    """Who runs the plan's regions, by name."""
    host = hosted(plan, threads)
    if kind == "local":
        yield {name: host.stages[stage_name("model", 1, name)] for name in (CLEAN, TOWER)}
        await host.drain()
        host.close()
        return
    async with stages(host) as (_, address), channel_to(address) as channel:
        yield remote_stages(plan, {"both": channel})


@pytest.fixture(params=KINDS)
def running(
    request: pytest.FixtureRequest, directory: Path, tmp_path: Path, threads: StageThreads
) -> Callable[..., object]:
    """`async with running(...) as regions`, whoever runs them."""
    return lambda **tower: runners(request.param, plan_of(directory, tmp_path, **tower), threads)


async def run(runner: StageRunner, *tensors: Array, seconds: float = LONG) -> Array:
    context = RequestContext("test", time.monotonic() + seconds)
    (output,) = await runner.run(tensors, len(tensors[0]), context)
    return output


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


async def both(regions: dict[str, StageRunner], rows: int, seed: int) -> Array:
    """The model's answer, region by region."""
    feeds = stage_models.feeds(rows, seed)
    cleaned = await run(regions[CLEAN], feeds["words"], feeds["x"])
    return softmax(await run(regions[TOWER], cleaned))


async def test_regions_one_after_the_other_answer_what_tensorflow_does(running, uncut) -> None:
    oracle = uncut("staged")
    async with running() as regions:
        answers = await asyncio.gather(*(both(regions, rows, rows) for rows in range(1, 9)))
        for rows, answer in enumerate(answers, 1):
            expected = oracle.answer("serving_default", stage_models.feeds(rows, rows))
            np.testing.assert_allclose(answer, *expected.values(), rtol=1e-5)


async def test_a_request_of_no_rows_gets_none(running) -> None:
    async with running() as regions:
        answer = await run(regions[TOWER], np.zeros((0, 9), np.float32))
        assert answer.shape == (0, 3)


async def test_a_request_that_the_graph_refuses_fails_alone_with_tensorflows_words(running) -> None:
    good, bad = np.ones((2, 9), np.float32), np.ones((2, 7), np.float32)
    async with running() as regions:
        tower = regions[TOWER]
        answers = await asyncio.gather(
            run(tower, good), run(tower, bad), run(tower, good), return_exceptions=True
        )
        assert isinstance(answers[1], InvalidArgument)
        assert "Matrix size-incompatible: In[0]: [2,7], In[1]: [9,8]" in answers[1].message
        np.testing.assert_array_equal(answers[0], answers[2])


async def test_what_is_larger_than_a_batch_is_refused_in_the_words_of_the_original(running) -> None:
    async with running() as regions:
        with pytest.raises(InvalidArgument, match="17 is larger than maximum input batch size 16"):
            await run(regions[TOWER], np.ones((17, 9), np.float32))


async def test_inputs_that_do_not_agree_in_rows_are_refused(running) -> None:
    words, x = stage_models.feeds(3, 0).values()
    async with running() as regions:
        with pytest.raises(InvalidArgument, match="must have equal 0th-dimension size"):
            await run(regions[CLEAN], words, x[:2])


async def test_a_full_queue_is_unavailable_at_once(running) -> None:
    async with running(batch_timeout_micros=10_000_000, max_enqueued_batches=1) as regions:
        tower = regions[TOWER]
        asked = [asyncio.create_task(run(tower, np.ones((9, 9), np.float32))) for _ in range(6)]
        ended, waiting = await asyncio.wait(asked, timeout=LONG, return_when="FIRST_COMPLETED")
        error = ended.pop().exception()
        assert isinstance(error, Unavailable)
        assert "The batch scheduling queue to which this task was submitted is full" in str(error)
        for task in waiting:
            task.cancel()
        await asyncio.wait(asked)


async def test_a_request_whose_time_is_up_is_not_run(running) -> None:
    async with running() as regions:
        with pytest.raises((DeadlineExceeded, ResourceExhausted)):
            await run(regions[TOWER], np.ones((1, 9), np.float32), seconds=-1.0)


async def test_a_cancelled_request_leaves_its_batch_and_the_others_are_answered(running) -> None:
    async with running(batch_timeout_micros=200_000) as regions:
        tower = regions[TOWER]
        asked = [asyncio.create_task(run(tower, np.ones((1, 9), np.float32))) for _ in range(3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        await asyncio.wait(asked)
        assert asked[1].cancelled()
        np.testing.assert_array_equal(asked[0].result(), asked[2].result())


async def test_the_time_of_a_request_is_spent_on_its_stages(running) -> None:
    async with running() as regions:
        context = RequestContext("test", math.inf)
        await regions[TOWER].run([np.ones((1, 9), np.float32)], 1, context)
        assert context.seconds["dense"] > 0.0
        assert context.seconds["queue"] >= 0.0


# Behind a stream


async def test_a_traced_request_is_told_what_the_actor_did(directory, tmp_path, threads) -> None:
    context = traced(RequestContext("test", math.inf))
    async with runners("remote", plan_of(directory, tmp_path), threads) as regions:
        await regions[TOWER].run([np.ones((1, 9), np.float32)], 1, context)

    (work,) = context.remote
    assert work.name == f"stage {STAGE}"
    assert work.work_seconds > 0.0
    assert context.started <= work.began <= time.time_ns()


async def test_requests_of_two_routers_meet_in_one_batch(directory, tmp_path, threads) -> None:
    plan = plan_of(directory, tmp_path, batch_timeout_micros=10_000_000, max_batch_size=2)
    host = hosted(plan, threads)
    async with (
        stages(host) as (_, address),
        channel_to(address) as one,
        channel_to(address) as other,
    ):
        # Neither fills a batch by itself, and the batch would wait for longer than they do.
        x = np.ones((1, 9), np.float32)
        answers = await asyncio.gather(
            run(RemoteStage(STAGE, one), x), run(RemoteStage(STAGE, other), x)
        )
        np.testing.assert_array_equal(*answers)


async def test_models_and_versions_on_one_actor_answer_each_for_itself_on_one_device(
    directory, tmp_path, tmp_path_factory, threads
) -> None:
    other = tmp_path_factory.mktemp("other") / "2"
    stage_models.export(other, seed=6)
    plans = [
        plan_of(directory, tmp_path),
        replace(plan_of(directory, tmp_path), name="again"),
        replace(plan_of(other, tmp_path), version=2),
    ]
    loaded = [load_stages(p, p.stage_groups[0], threads, Parallelism()) for p in plans]
    host = host_of(*((one, ()) for one in loaded))
    async with stages(host) as (_, address), channel_to(address) as channel:
        asked = [both(remote_stages(p, {"both": channel}), 3, n) for n in range(9) for p in plans]
        answers = await asyncio.gather(*asked)
    for where, path in enumerate((directory, directory, other)):
        uncut = Uncut(path)
        for n, answer in enumerate(answers[where::3]):
            expected = uncut.answer("serving_default", stage_models.feeds(3, n))
            np.testing.assert_allclose(answer, *expected.values(), rtol=1e-5)
        uncut.close()


async def test_a_stage_that_the_actor_does_not_have_is_not_found(
    directory, tmp_path, threads
) -> None:
    host = hosted(plan_of(directory, tmp_path), threads)
    async with stages(host) as (_, address), channel_to(address) as channel:
        with pytest.raises(NotFound, match="no stage 'other' here, only model/1/clean"):
            await run(RemoteStage("other", channel), np.ones((1, 9), np.float32))


async def test_what_waits_in_a_stage_actors_queue_is_answered_when_it_stops(
    directory, tmp_path, threads
) -> None:
    host = hosted(plan_of(directory, tmp_path, batch_timeout_micros=60_000_000), threads)
    async with stages(host) as (server, address), channel_to(address) as channel:
        asked = [
            asyncio.create_task(run(RemoteStage(STAGE, channel), np.ones((1, 9), np.float32)))
            for _ in range(3)
        ]
        await until(lambda: server.in_flight == 3)
        await server.close(grace_seconds=30.0)
        assert {(await one).shape for one in asked} == {(1, 3)}


async def test_an_actor_restores_no_variable_that_its_regions_do_not_read(
    directory, tmp_path, threads
) -> None:
    file = stage_models.write_stages(
        tmp_path / "stages.yaml", directory, {"actors": {}}, {"actors": {}}
    )
    plan = plan_model("m", 1, directory, PlanOptions(batching=BatchingOptions(stages_file=file)))
    clean, tower = plan.stage_groups

    loaded = load_stages(plan, clean, threads, Parallelism())
    assert not loaded.cut.variables
    loaded.runner.close()
    loaded = load_stages(plan, tower, threads, Parallelism())
    assert len(loaded.cut.variables) == 4
    loaded.runner.close()
    assert clean.fingerprint != tower.fingerprint
