"""Sequences behind stage actors' streams: all routers' requests meet, and an actor may be lost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

from shardserve.batching.errors import Unavailable
from shardserve.router.remote_stage import RemoteStage
from shardserve.router.sequence_plan import SequencePlan, plan_sequence
from shardserve.router.sequence_runners import RemoteSequence
from shardserve.router.servable import Array, RequestContext
from shardserve.router.session import Parallelism, StageThreads
from shardserve.router.stage_host import StageHost
from shardserve.router.stage_loading import LoadedStages, host_of, load_stages
from shardserve.router.whole import signatures_of
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.cut.saved_model import read_meta_graph
from shardserve.shards.model import PlanOptions
from shardserve.shards.replicas import Replicas
from shardserve.shards.stage_messages import StageReply, StageRequest
from shardserve.shards.stages import BatchingOptions
from tests.shards.plane import until
from tests.shards.stage_plane import channel_to, stages
from tests.step_models import WIDTH, export_encoder
from tests.uncut import Uncut

STAGE = "m/1/sequences/encode"
ENCODE = {
    "step": "step",
    "state": {"h": "new_h", "c": "new_c"},
    "per_step": {"x": "x"},
    "max_steps": 100_000,
    "returns": {"new_h": "last"},
    "actors": {},
}

Channel = Replicas[StageRequest, StageReply]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "1"
    export_encoder(path)
    return path


@pytest.fixture
def load(encoder: Path, tmp_path: Path, threads: StageThreads):
    """Loads the stages of one more actor."""
    file = tmp_path / "stages.yaml"
    file.write_text(yaml.safe_dump({"sequences": {"encode": ENCODE}}))
    plan = plan_model("m", 1, encoder, PlanOptions(batching=BatchingOptions(stages_file=file)))
    return lambda: load_stages(plan, plan.stage_groups[0], threads, Parallelism())


@asynccontextmanager
async def hosting(loaded: LoadedStages) -> AsyncIterator[tuple[StageHost, object, object]]:
    host = host_of((loaded, ()))
    async with stages(host) as (server, address):
        yield host, server, address


def sequence(loaded: LoadedStages, channel: Channel) -> RemoteSequence:
    """As a router has it."""
    plan: SequencePlan = plan_sequence(
        "encode",
        loaded.plan.stages.sequences["encode"],
        signatures_of(read_meta_graph(Path(loaded.plan.directory)), loaded.plan.name),
    )
    return RemoteSequence(plan.signature, RemoteStage(STAGE, channel))


async def ask(sequence: RemoteSequence, x: Array) -> Array:
    context = RequestContext("test", math.inf)
    return (await sequence.run({"x": x}, ["new_h"], context))["new_h"]


def zeros(steps: int) -> Array:
    return np.zeros((1, steps, WIDTH), np.float32)


async def test_requests_of_two_routers_are_stepped_together(load) -> None:
    loaded = load()
    async with (
        hosting(loaded) as (host, _, address),
        channel_to(address) as one,
        channel_to(address) as other,
    ):
        routers = [sequence(loaded, one), sequence(loaded, other)]
        await asyncio.gather(*[ask(router, zeros(200)) for router in routers for _ in range(8)])
        counts = host.stages[STAGE].counts()
        told = {(one.name, dict(one.labels)["stage"]): one.value for one in host.measures()}
        assert told["batching_rows", STAGE] == counts.rows
    assert counts.rows == 16 * 200
    assert counts.batches < counts.rows / 8  # More than one router's requests at each step.


async def test_a_sequence_whose_actor_is_lost_begins_anew_on_another(load, encoder) -> None:
    loaded = load()
    x = np.random.default_rng(2).normal(size=(1, 3000, WIDTH)).astype(np.float32)
    async with (
        hosting(loaded) as (one, first, here),
        hosting(load()) as (other, second, there),
        channel_to(here, there) as channel,
    ):
        asked = asyncio.ensure_future(ask(sequence(loaded, channel), x))
        await until(lambda: first.in_flight + second.in_flight == 1)
        lost = first if first.in_flight else second
        await lost.close(grace_seconds=0.0)
        answer = await asked
        assert {host.stages[STAGE].counts().tasks for host in (one, other)} == {0, 1}
    alone = Uncut(encoder)
    np.testing.assert_allclose(
        answer, alone.answer("serving_default", {"x": x})["h"], rtol=1e-4, atol=1e-5
    )
    alone.close()


async def test_what_was_accepted_ends_when_the_actor_stops_and_nothing_new_begins(load) -> None:
    loaded = load()
    async with AsyncExitStack() as stack:
        host, server, address = await stack.enter_async_context(hosting(loaded))
        channel = await stack.enter_async_context(channel_to(address))
        router = sequence(loaded, channel)
        asked = [asyncio.ensure_future(ask(router, zeros(300))) for _ in range(3)]
        await until(lambda: server.in_flight == 3)
        draining = asyncio.ensure_future(host.drain())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="the model is being unloaded"):
            await ask(router, zeros(1))
        assert [one.shape for one in await asyncio.gather(*asked)] == [(1, 9)] * 3
        await draining
