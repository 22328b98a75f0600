"""The controller's own part of a run, in this process: what it tells routers, and when."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, cast

import pytest
import ray
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from shardserve.batching.errors import NotFound
from shardserve.cluster.catalog_table import VersionEntry
from shardserve.cluster.control_plane import ControlPlane
from shardserve.cluster.leases import RouterReport
from shardserve.cluster.memory import Memory
from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.options import (
    Application,
    DoorOptions,
    ManagerOptions,
    Models,
    RayOptions,
)
from shardserve.cluster.router_app import RouterApp
from shardserve.cluster.run import Run, new_name
from shardserve.cluster.versions import VersionId
from shardserve.router.catalog import State
from shardserve.router.tls import Tls
from tests.cluster.runs import SECRET
from tests.versioned_models import config_text, export, model_text

pytestmark = pytest.mark.usefixtures("ray_cluster")

FOREVER = 60.0
ONE = VersionId("m", 1)
UNPOLLED = ManagerOptions(poll_seconds=0.0)


@asynccontextmanager
async def plane_of(
    *configs: ModelConfig, manager: ManagerOptions = UNPOLLED
) -> AsyncIterator[ControlPlane]:
    """Of a run without routers of its own."""
    run = Run(new_name(), Models(configs), False, manager=manager)
    async with ended(ControlPlane(run, SECRET)) as plane:
        yield plane


@asynccontextmanager
async def ended(plane: ControlPlane) -> AsyncIterator[ControlPlane]:
    """End it with the block."""
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


async def test_what_ends_a_controller_is_told_by_its_next_life(tmp_path: Path) -> None:
    died = asyncio.Event()
    # What no flag lets through: who polls the file fails as nobody expects.
    broken = Models((), config_file=tmp_path / "models", poll_seconds=cast(float, "often"))
    first = Run(new_name(), broken, False, manager=UNPOLLED)
    async with asyncio.timeout(FOREVER), ended(ControlPlane(first, SECRET, died.set)):
        await died.wait()
        async with ended(ControlPlane(replace(first, models=Models(())), SECRET)) as second:
            table = await second.table(-1, FOREVER)
            assert table is not None
            while not table.opens:
                table = await second.table(table.number, FOREVER)
                assert table is not None
            (problem,) = table.problems
            assert problem.startswith("the controller was made anew: TypeError: ")


async def test_what_ends_a_first_start_is_told_to_who_waits_for_it() -> None:
    died: list[None] = []
    broken = replace(UNPOLLED, poll_seconds=cast(float, "often"))
    run = Run(new_name(), Models(()), False, manager=broken)
    plane = ControlPlane(run, SECRET, lambda: died.append(None))
    async with asyncio.timeout(FOREVER), ended(plane):
        start = plane.start.latest
        while start.failure is None:
            start = await plane.start.wait(start.number, FOREVER)
        assert start.failure.message.startswith("TypeError: ")
        assert not died


async def test_the_file_that_was_followed_last_counts_after_a_controllers_death(
    tmp_path: Path,
) -> None:
    file = tmp_path / "models"
    file.write_text(config_text(model_text("last", tmp_path / "last")))
    run = Run(
        new_name(),
        Models((), config_file=file, poll_seconds=0.01),
        False,
        manager=UNPOLLED,
    )
    async with asyncio.timeout(FOREVER), ended(ControlPlane(run, SECRET)) as first:
        table = await first.table(-1, FOREVER)
        while table is None or "last" not in table.models:
            table = await first.table(-1 if table is None else table.number, FOREVER)
        await first._manager.abandon()
        while first._memory.followed is None:
            await asyncio.to_thread(int)
        file.write_text("model_config_list {")
        async with ended(ControlPlane(run, SECRET)) as second:
            found = await second.table(-1, FOREVER)
            assert found is not None
            assert set(found.models) == {"last"}


async def test_routers_are_told_of_certificates_once() -> None:
    async with plane_of() as plane:
        first, second = Tls(b"key", b"first"), Tls(b"key", b"second")
        plane.renew(1, first)
        plane.renew(1, second)
        assert (plane.catalog.latest.renewed, await plane.tls()) == (1, first)
        plane.renew(2, second)
        assert (plane.catalog.latest.renewed, await plane.tls()) == (2, second)


async def test_certificates_that_are_to_come_are_waited_for(tmp_path: Path) -> None:
    async with plane_without_serve(tmp_path / "ssl.config") as plane:
        asked = asyncio.ensure_future(plane.tls())
        await asyncio.to_thread(int)
        assert not asked.done()
        plane.renew(1, Tls(b"key", b"first"))
        assert await asked == Tls(b"key", b"first")


async def test_what_fails_with_the_routers_is_logged_and_the_run_ends_in_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with asyncio.timeout(FOREVER), plane_without_serve() as plane:
        start = plane.start.latest
        while start.failure is None:
            start = await plane.start.wait(start.number, FOREVER)
        await plane._memory.opened()
    assert "no Serve today" in start.failure.message
    assert [record.message for record in caplog.records if record.exc_info] == [
        "the routers do not start",
        "the routers are not ended",
    ]
    after = Memory(plane._run.name)
    await after.recall()
    assert not after.has_opened


@asynccontextmanager
async def plane_without_serve(tls_file: Path | None = None) -> AsyncIterator[ControlPlane]:
    """Of a run whose routers can be neither started nor ended."""

    def fail() -> NoReturn:
        raise TimeoutError("no Serve today")

    name = new_name()
    application = Application(name, name, DoorOptions(tls_file=tls_file), RayOptions())
    plane = ControlPlane(Run(name, Models(()), False, application=application), SECRET)
    plane._app = RouterApp(fail, fail)
    async with ended(plane):
        yield plane


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
