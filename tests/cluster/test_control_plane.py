"""The controller's own part of a run, in this process: what it tells routers, and when."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from shardserve.cluster.control_plane import ControlPlane
from shardserve.cluster.leases import RouterReport
from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.options import Models
from shardserve.cluster.run import Run
from tests.cluster.runs import SECRET

pytestmark = pytest.mark.usefixtures("ray_cluster")

FOREVER = 60.0


@asynccontextmanager
async def plane_of(*configs: ModelConfig) -> AsyncIterator[ControlPlane]:
    """Of a run without routers of its own."""
    plane = ControlPlane(Run(f"test-{secrets.token_hex(4)}", Models(configs), False), SECRET)
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
