"""A router replica by itself: what its controller has it do, and what becomes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shardserve.batching.errors import Internal
from shardserve.cluster.catalog_table import Serving
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.options import Application, DoorOptions, Models, RayOptions
from shardserve.cluster.ports import free_ports
from shardserve.cluster.router_deployment import Router
from shardserve.cluster.router_models import RouterModels, RouterVersion
from shardserve.cluster.versions import VersionId
from shardserve.router.catalog import Catalog
from tests.cluster.probes import probed
from tests.cluster.runs import serving
from tests.router.certificates import Authority


def nothing_to_load(version: VersionId, serving: Serving) -> RouterVersion:
    raise AssertionError(f"{version} of {serving}")


@pytest.mark.usefixtures("ray_cluster")
async def test_a_router_shows_the_certificates_and_the_readiness_that_its_controller_says(
    tmp_path: Path,
) -> None:
    (port,) = free_ports(1)
    first, second = Authority(), Authority()
    doors = DoorOptions(grpc_port=0, rest_port=port)
    async with serving(Models(()), ModelOptions()) as run:
        await run.controller.renew.remote(1, first.server())
        made = Router.__new__(Router)
        application = Application(run.name, run.name, doors, RayOptions())
        await made.__init__(application)  # type: ignore[misc, func-returns-value]
        try:
            assert await probed(port, first, tmp_path) == 200
            await run.controller.renew.remote(2, second.server())
            while await probed(port, second, tmp_path) is None:
                pass
            assert await probed(port, first, tmp_path) is None

            await run.controller.drain.remote()
            while await probed(port, second, tmp_path) != 503:
                pass
        finally:
            await made.leave()


async def test_a_router_that_cannot_follow_tables_does_not_start() -> None:
    async def follow() -> None:
        raise Internal("no such table")

    made = Router.__new__(Router)
    made._models = RouterModels(Catalog(), nothing_to_load)
    made._changed = asyncio.Event()
    made._following = asyncio.ensure_future(follow())

    async with asyncio.timeout(10):
        with pytest.raises(Internal, match="no such table"):
            await made._ready()
