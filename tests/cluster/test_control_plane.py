"""The controller's own part of a run, in this process: what it tells routers, and when."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from shardserve.batching.errors import NotFound
from shardserve.cluster.catalog_table import VersionEntry
from shardserve.cluster.control_plane import ControlPlane
from shardserve.cluster.leases import RouterReport
from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.options import ManagerOptions, Models
from shardserve.cluster.run import Run
from shardserve.cluster.versions import VersionId
from shardserve.router.catalog import State
from tests.cluster.runs import SECRET
from tests.versioned_models import export

pytestmark = pytest.mark.usefixtures("ray_cluster")

FOREVER = 60.0
ONE = VersionId("m", 1)
UNPOLLED = ManagerOptions(poll_seconds=0.0)


@asynccontextmanager
async def plane_of(
    *configs: ModelConfig, manager: ManagerOptions = UNPOLLED
) -> AsyncIterator[ControlPlane]:
    """Of a run without routers of its own."""
    name = f"test-{secrets.token_hex(4)}"
    plane = ControlPlane(Run(name, Models(configs), False, manager=manager), SECRET)
    try:
        yield plane
    finally:
        await plane.end()


async def test_no_router_is_told_of_a_table_before_it_is_known_what_is_configured(
    tmp_path: Path,
) -> None:
    async with plane_of(ModelConfig("m", tmp_path / "m")) as plane:
        assert await plane.table(-1, 0.0) is None
        await plane.collected()
        table = await plane.table(-1, FOREVER)
        assert table is not None
        assert set(table.models) == {"m"}


async def test_a_reload_is_answered_when_every_router_follows_what_it_says(tmp_path: Path) -> None:
    async with plane_of(ModelConfig("m", tmp_path / "m")) as plane:
        before = await plane.table(-1, FOREVER)
        assert before is not None
        plane.routers.heard("router", RouterReport(1, applied=before.number))
        reloading = asyncio.ensure_future(plane.reload(ModelServerConfig().SerializeToString()))
        table = before
        while any(one.is_configured for one in table.models.values()):
            found = await plane.table(table.number, FOREVER)
            assert found is not None
            table = found
        for _ in range(30):
            plane.routers.heard("router", RouterReport(1, applied=before.number))
            await asyncio.to_thread(int)
        assert not reloading.done()
        plane.routers.heard("router", RouterReport(2, applied=plane.catalog.latest.number))
        assert await reloading is None


async def test_a_load_that_is_cancelled_late_ends_when_routers_have_dropped_it(
    tmp_path: Path,
) -> None:
    export(tmp_path / "m", 1, 10.0)
    polling = ManagerOptions(poll_seconds=0.05)
    config = ModelConfig("m", tmp_path / "m")
    async with asyncio.timeout(FOREVER), plane_of(config, manager=polling) as plane:
        listener = Listener.options(name=plane.deployer._site.run).remote()
        offered = await entry_in(plane, RouterReport(), lambda one: one.serving is not None)
        assert offered.serving is not None
        has = RouterReport(1, 0, {ONE: offered.serving.deployment}, held=frozenset({ONE}))
        await entry_in(plane, has, lambda one: one.serving is not None and one.serving.is_active)

        shutil.rmtree(tmp_path / "m" / "1")
        await entry_in(plane, has, lambda one: one.state is State.UNLOADING)
        number = plane.catalog.latest.number
        plane.routers.heard("router", replace(has, number=2, applied=number))
        assert plane.deployer.of_version(ONE).token == offered.serving.deployment
        await entry_in(plane, RouterReport(3, number), lambda one: one.state is State.END)
        with pytest.raises(NotFound):
            plane.deployer.of_version(ONE)
        ray.kill(listener)


@ray.remote(num_cpus=0)
class Listener:
    """Who is told how far a plan is, by the controller's name."""

    def verified(self, deployment: str, nbytes: int, total: int) -> None:
        """Of no interest."""


async def entry_in(
    plane: ControlPlane, report: RouterReport, condition: Callable[[VersionEntry], bool]
) -> VersionEntry:
    """The version as the first table has it in which it meets the condition.

    A router says meanwhile what it has.
    """
    number = -1
    while True:
        plane.routers.heard("router", report)
        table = await plane.table(number, 1.0)
        if table is None:
            continue
        number = table.number
        entry = table.models["m"].versions.get(1)
        if entry is not None and condition(entry):
            return entry
