"""What needs a Ray: shard actors, their controller, and what becomes of both when they die."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from examples.dlrm import example_features, tiny_config
from shardserve.batching.errors import ResourceExhausted, Unavailable
from shardserve.cluster.placement import Seat
from shardserve.cluster.routing import Routing
from shardserve.router.servable import Array, RequestContext, Servable
from shardserve.router.session import StageThreads
from shardserve.router.sharded import load_sharded
from shardserve.shards.model import PlanOptions
from shardserve.shards.storage import Storage, Tier
from tests.cluster.runs import LONGEST_SECONDS, SECRET, ModelRun, placed, running
from tests.saved_models import THRESHOLD
from tests.sharded import assert_same
from tests.uncut import Uncut

pytestmark = pytest.mark.usefixtures("ray_cluster")

CUT = PlanOptions(shards=2, threshold=16_000)
OUTPUT = "prediction"


@asynccontextmanager
async def routed(run: ModelRun) -> AsyncIterator[Servable]:
    """A router's servable over a run's shards, that follows the run's tables."""
    plan = await run.plan()
    routing = Routing(plan, await run.table(), SECRET)
    following = asyncio.ensure_future(routing.follow(run.table))
    threads = StageThreads()
    servable = await asyncio.to_thread(load_sharded, plan, routing.channels, threads)
    await routing.connected()
    try:
        yield servable
    finally:
        following.cancel()
        await routing.close()
        await servable.close()
        threads.close()


async def predict(servable: Servable, seconds: float = 5.0) -> Array:
    features = example_features(tiny_config(), batch=3, seed=1)
    context = RequestContext("test", time.monotonic() + seconds)
    reply = await servable.run("serving_default", features, [OUTPUT], context)
    return reply[OUTPUT]


@dataclass
class Load:
    """Requests without a pause from several clients at once; what they were answered."""

    servable: Servable
    expected: Array
    right: int = 0
    unavailable: int = 0
    _stopping: bool = False
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def _client(self) -> None:
        while not self._stopping:
            try:
                answer = await predict(self.servable)
            except Unavailable:
                self.unavailable += 1
                await asyncio.sleep(0.02)  # What is awaited needs the processor, too.
            else:
                np.testing.assert_allclose(answer, self.expected, rtol=1e-5)
                self.right += 1
                self._answered.set()
            await asyncio.sleep(0)

    @asynccontextmanager
    async def applied(self, clients: int = 4) -> AsyncIterator[None]:
        """Any other error than Unavailable, and any wrong answer, is raised at the end."""
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client())
            yield
            self._stopping = True

    async def answers(self, more: int) -> None:
        """Return when so many more requests have been answered."""
        wanted = self.right + more
        while self.right < wanted:
            self._answered.clear()
            await self._answered.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(ray_cluster: None, tiny_dlrm: Path) -> AsyncIterator[ModelRun]:
    """A run of two shards. Tests of it kill its processes, and leave it with all of them back."""
    async with running(tiny_dlrm / "1", CUT, seconds=None) as run:
        yield run


async def test_shard_processes_load_no_tensorflow(shared: ModelRun) -> None:
    assert (await shared.finished_start()).is_settled

    for seat, _ in (await shared.table()).by_seat():
        process = await shared.process_of(seat)
        assert "numpy" in process.packages
        assert not {"tensorflow", "keras", "tensorflow_serving"} & set(process.packages)


async def test_a_graph_that_decodes_its_own_output_calls_out_to_shard_processes(
    saved_model: Callable[[str], Path], uncut: Callable[[str], Uncut]
) -> None:
    directory = saved_model("greedy")
    feeds = {"first": np.array([3, 8], np.int64)}
    expected = uncut("greedy").answer("serving_default", feeds)
    async with running(directory, PlanOptions(shards=2, threshold=THRESHOLD)) as run:
        assert (await run.finished_start()).is_settled
        async with routed(run) as servable:
            context = RequestContext("test", time.monotonic() + 20)
            got = await servable.run("serving_default", feeds, list(expected), context)
    assert_same(got, expected)


async def test_a_killed_shard_costs_only_unavailable_answers_until_it_is_back(
    shared: ModelRun,
) -> None:
    run = shared
    async with asyncio.timeout(LONGEST_SECONDS):
        await run.finished_start()
        before = (await run.table()).addresses[1][0]
        assert before is not None
        async with routed(run) as servable:
            load = Load(servable, await predict(servable))
            async with load.applied():
                await load.answers(20)
                await run.kill(Seat(1, 0))
                after = await run.table_in_which(Seat(1, 0), before.instance)
                await load.answers(20)

            assert load.unavailable > 0
        # News of the death comes late, and must not be taken for the successor's.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run.table(after.number), timeout=3.0)


async def test_a_killed_replica_costs_no_answer(tiny_dlrm: Path) -> None:
    async with running(tiny_dlrm / "1", replace(CUT, replicas=2)) as run:
        await run.finished_start()
        before = (await run.table()).addresses[0][1]
        assert before is not None
        async with routed(run) as servable:
            load = Load(servable, await predict(servable))
            async with load.applied():
                await load.answers(20)
                await run.kill(Seat(0, 1))
                await run.table_in_which(Seat(0, 1), before.instance)
                await load.answers(20)

            assert load.unavailable == 0


async def test_a_killed_controller_places_the_model_again_and_routers_find_it(
    shared: ModelRun,
) -> None:
    run = shared
    async with asyncio.timeout(110.0):
        await run.finished_start()
        async with routed(run) as servable:
            load = Load(servable, await predict(servable))
            async with load.applied(clients=1):
                await load.answers(5)
                before = await run.table()
                await run.kill_controller()
                await run.placed_again(before)
                await load.answers(20)


async def test_a_data_file_that_is_cut_off_fails_the_start_and_is_named(
    tiny_dlrm: Path, tmp_path: Path
) -> None:
    version = shutil.copytree(tiny_dlrm / "1", tmp_path / "1")
    (data,) = (version / "variables").glob("variables.data-*")
    os.truncate(data, data.stat().st_size // 2)

    async with running(version, CUT) as run:
        start = await run.finished_start()

        assert start.failure is not None
        assert str(data) in start.failure.message


async def test_a_model_that_does_not_fit_is_refused_before_anything_is_placed(
    tiny_dlrm: Path,
) -> None:
    async with running(tiny_dlrm / "1", replace(CUT, shards=50_000)) as run:
        start = await run.finished_start()

        assert start.failure is not None
        assert start.failure.code == ResourceExhausted.code
        assert "do not fit" in start.failure.message


async def test_shards_on_gpus_that_the_cluster_has_not_are_refused(tiny_dlrm: Path) -> None:
    with pytest.raises(
        ResourceExhausted, match="1 GPU each do not fit: the cluster has room for 1 "
    ):
        await placed(tiny_dlrm / "1", replace(CUT, storage=Storage(Tier.GPU)))


async def test_a_model_with_nothing_to_cut_needs_no_shards(tiny_dlrm: Path) -> None:
    nothing = await placed(tiny_dlrm / "1", PlanOptions(shards=4, threshold=1 << 40))

    assert not nothing.actors
