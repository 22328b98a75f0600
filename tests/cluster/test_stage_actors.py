"""Regions on Ray actors of their own, as a router finds and uses them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

from shardserve.batching.driver import BatchDevice
from shardserve.batching.errors import ResourceExhausted, Unavailable
from shardserve.cluster.loading import load_servable
from shardserve.cluster.placement import Seat
from shardserve.cluster.routing import Routing
from shardserve.cluster.serving import Runtime
from shardserve.cluster.stage_placement import StageSeat
from shardserve.cluster.table import RoutingTable
from shardserve.router.remote_stage import remote_stages
from shardserve.router.servable import Array, RequestContext, Servable
from shardserve.router.session import StageThreads
from shardserve.shards.model import PlanOptions
from shardserve.shards.stages import BatchingOptions
from tests import stage_models, step_models
from tests.cluster.runs import ONLY, SECRET, ModelRun, placed, running
from tests.uncut import Uncut

DECODE = {
    "step": "next",
    "state": {"state": "new_state"},
    "feedback": {"token": "next_token"},
    "initial": {"token": {"value": 1}, "state": {"output": "state"}},
    "before": "encode",
    "stop": {"output": "next_token", "equals": step_models.STOP_TOKEN},
    "max_steps": 40,
    "returns": {"next_token": "all"},
}

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def directory(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("staged")


def options(
    directory: Path, file: Path, clean: dict[str, object], tower: dict[str, object]
) -> PlanOptions:
    stage_models.write_stages(file, directory, clean, tower)
    return PlanOptions(batching=BatchingOptions(stages_file=file))


@asynccontextmanager
async def routed(run: ModelRun) -> AsyncIterator[Servable]:
    """A router's servable over a run's stage actors, that follows the run's tables."""
    plan = await run.plan()
    routing = Routing(plan, await run.table(), SECRET)
    following = asyncio.ensure_future(routing.follow(run.table))
    threads = StageThreads(1)
    runtime = Runtime(threads, BatchDevice(1))
    remote = remote_stages(plan, routing.stages)
    servable = await asyncio.to_thread(load_servable, plan, routing.channels, runtime, remote)
    await routing.connected()
    try:
        yield servable
    finally:
        following.cancel()
        await routing.close()
        threads.close()


async def test_steps_on_an_actor_that_look_up_on_shards_answer_as_tensorflow_does(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "model" / "1"
    await asyncio.to_thread(step_models.export_decoder, directory, whole=False)
    actors = {"actors": {"num_cpus": 0.1, "group": "steps"}}
    sections = {"sequences": {"decode": {**DECODE, **actors}}, "loops": {"encode": actors}}
    file = tmp_path / "stages.yaml"
    file.write_text(yaml.safe_dump(sections))
    table = step_models.VOCABULARY * step_models.WIDTH * 4
    wanted = PlanOptions(2, threshold=table, batching=BatchingOptions(stages_file=file))
    source = np.array([[3, 5, 7, 11]])
    async with running(directory, wanted) as run:
        start = await run.finished_start()
        assert start.is_settled, start.failure
        assert set(start.versions[ONLY].loaded) == {StageSeat("steps", 0), Seat(0, 0), Seat(1, 0)}
        async with routed(run) as servable:
            context = RequestContext("test", time.monotonic() + 10.0)
            decoded, encoded = await asyncio.gather(
                servable.run("decode", {"source": source}, ["next_token"], context),
                servable.run("encode", {"source": source}, ["state"], context),
            )
            assert not any("/sequences/" in n or "/loops/" in n for n in servable.stage_counts())
    await asyncio.to_thread(step_models.export_decoder, tmp_path / "whole")
    alone = await asyncio.to_thread(Uncut, tmp_path / "whole")
    feeds = {"source": source, "most": np.int64(40)}
    expected = alone.answer("serving_default", feeds)["tokens"]
    np.testing.assert_array_equal(decoded["next_token"], expected)
    state = alone.answer("encode", {"source": source})["state"]
    np.testing.assert_allclose(encoded["state"], state, rtol=1e-5, atol=1e-6)
    alone.close()


async def answer(servable: Servable, rows: int, seed: int) -> Array:
    (output,) = servable.signatures["serving_default"].outputs
    context = RequestContext("test", time.monotonic() + 10.0)
    feeds = stage_models.feeds(rows, seed)
    return (await servable.run("serving_default", feeds, [output], context))[output]


async def test_regions_on_actors_answer_as_tensorflow_does_whatever_actor_dies(
    directory: Path, tmp_path: Path
) -> None:
    two = {"actors": {"num_cpus": 0.1, "count": 2, "group": "both"}}
    wanted = options(directory, tmp_path / "stages.yaml", two, two)
    async with running(directory, wanted, seconds=110.0) as run:
        start = await run.finished_start()
        assert start.is_settled, start.failure
        seats = StageSeat("both", 0), StageSeat("both", 1)
        assert set(start.versions[ONLY].loaded) == set(seats)
        async with routed(run) as servable:
            answers = await asyncio.gather(*(answer(servable, n, n) for n in range(1, 9)))
            expected = await asyncio.to_thread(_uncut, directory)
            for found, right in zip(answers, expected, strict=True):
                np.testing.assert_allclose(found, right, rtol=1e-5)

            before = await run.table()
            await run.kill(seats[0])
            for _ in range(20):  # There is another: nothing is lost.
                found = await answer(servable, 2, 2)
                np.testing.assert_allclose(found, answers[1], rtol=1e-5)

            await run.kill(seats[1])
            error = None
            while error is None:  # There is no other.
                error = (await outcome(servable))[1]
            assert isinstance(error, Unavailable)

            for seat in seats:
                await run.table_in_which(seat, instance_of(before, seat))
            found = None
            while found is None:
                found, error = await outcome(servable)
            np.testing.assert_allclose(found, answers[1], rtol=1e-5)


def instance_of(table: RoutingTable, seat: StageSeat) -> str:
    address = table.at(seat)
    assert address is not None
    return address.instance


def _uncut(directory: Path) -> list[Array]:
    uncut = Uncut(directory)
    found = [
        next(iter(uncut.answer("serving_default", stage_models.feeds(n, n)).values()))
        for n in range(1, 9)
    ]
    uncut.close()
    return found


async def outcome(servable: Servable) -> tuple[Array | None, Unavailable | None]:
    """An answer, or that there is none at the moment."""
    try:
        return await answer(servable, 2, 2), None
    except Unavailable as error:
        return None, error


async def test_stage_actors_that_the_cluster_has_no_room_for_are_refused_naming_their_region(
    directory: Path, tmp_path: Path
) -> None:
    many = {"actors": {"count": 3, "num_gpus": 1}}
    wanted = options(directory, tmp_path / "stages.yaml", {}, many)
    with pytest.raises(ResourceExhausted) as refused:
        await placed(directory, wanted)

    assert "3 stage actors of 1 CPU and 1 GPU" in refused.value.message
    assert "for region tower, do not fit" in refused.value.message
