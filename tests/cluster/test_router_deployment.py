"""A router replica without a Ray: what becomes of it when its parts end."""

from __future__ import annotations

import asyncio

import pytest

from shardserve.batching.errors import Internal
from shardserve.cluster.catalog_table import Serving
from shardserve.cluster.router_deployment import Router
from shardserve.cluster.router_models import RouterModels, RouterVersion
from shardserve.cluster.versions import VersionId
from shardserve.router.catalog import Catalog


def nothing_to_load(version: VersionId, serving: Serving) -> RouterVersion:
    raise AssertionError(f"{version} of {serving}")


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
