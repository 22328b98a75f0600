"""The Ray engine as models and versions come, change and go, with routers of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shardserve.batching.errors import FailedPrecondition, NotFound, Unavailable
from shardserve.cluster import controller_loss
from shardserve.cluster.lifecycle import Retries
from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.options import (
    Application,
    DoorOptions,
    ManagerOptions,
    Models,
    RayOptions,
)
from shardserve.cluster.ports import free_ports
from shardserve.cluster.router_deployment import Router
from shardserve.router.catalog import State
from shardserve.router.metric_snapshot import unpacked
from shardserve.shards.model import PlanOptions
from tests.cluster.runs import ServerRun, serving
from tests.versioned_models import THRESHOLD, Client, config_text, export, model_text

pytestmark = pytest.mark.usefixtures("ray_cluster")

#: Tables are cut, or no table is.
CUT = ModelOptions(PlanOptions(shards=2, threshold=THRESHOLD))
MANAGER = ManagerOptions(retries=Retries(0), poll_seconds=0.2)
NO_DOORS = DoorOptions(grpc_port=0, rest_port=0)
SECONDS = 100.0


def options_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


async def make_router(run: ServerRun, doors: DoorOptions) -> Router:
    """A router as Serve makes it."""
    made = Router.__new__(Router)
    application = Application(run.name, run.name, doors, RayOptions())
    await made.__init__(application)  # type: ignore[misc, func-returns-value]
    return made


@asynccontextmanager
async def router(run: ServerRun) -> AsyncIterator[Client]:
    """A router without doors."""
    made = await make_router(run, NO_DOORS)
    try:
        yield Client(made.prediction)
    finally:
        # As Serve does, and then Python.
        leaving = made.__del__()
        assert leaving is not None
        await leaving
        assert made.__del__() is None


async def until(client: Client, model: str, states: dict[int, State]) -> None:
    """Return when the versions of a model are in these states."""
    found: dict[int, State] = {}
    while found != states:
        await asyncio.sleep(0.02)
        try:
            found = await client.states(model)
        except NotFound:
            found = {}


async def test_models_and_versions_come_and_go_under_load_and_a_late_router_has_them_all(
    tmp_path: Path,
) -> None:
    export(tmp_path / "sharded", 1, 10.0)
    export(tmp_path / "whole", 4, 40.0)
    own = options_file(tmp_path / "options", 'model_options { name: "whole" cut_threshold: "1GB" }')
    configs = tuple(ModelConfig(name, tmp_path / name) for name in ("sharded", "whole"))
    models = Models(configs, options_file=own)
    async with serving(models, CUT, SECONDS, MANAGER) as run, router(run) as client:
        assert [await client.ask("sharded"), await client.ask("whole")] == [10.0, 40.0]
        servings = (await run.catalog()).servings()
        assert {one.model: len(s.routing.addresses) for one, s in servings.items()} == {
            "sharded": 2,
            "whole": 0,
        }

        answers: list[float] = []

        async def load() -> None:
            while not answers or answers[-1] != 20.0:
                answers.append(await client.ask("sharded"))

        async with asyncio.TaskGroup() as clients:
            for _ in range(4):
                clients.create_task(load())
            export(tmp_path / "sharded", 2, 20.0)
        assert set(answers) == {10.0, 20.0}
        await until(client, "sharded", {1: State.END, 2: State.AVAILABLE})

        label = "version_labels { key: 'stable' value: %d }"
        await client.reload(config_text(model_text("sharded", tmp_path / "sharded", label % 2)))
        await until(client, "whole", {4: State.END})
        with pytest.raises(FailedPrecondition, match="label to version 9 of model sharded"):
            await client.reload(config_text(model_text("sharded", tmp_path / "sharded", label % 9)))

        async with router(run) as late:
            assert await late.ask("sharded", label="stable") == 20.0
            with pytest.raises(NotFound):
                await late.ask("whole")


async def test_a_controller_that_dies_remembers_its_reload_and_what_is_whole_answers_meanwhile(
    tmp_path: Path,
) -> None:
    export(tmp_path / "m", 1, 10.0)
    export(tmp_path / "n", 2, 20.0)
    models = Models((ModelConfig("m", tmp_path / "m"),))
    async with serving(models, ModelOptions(), SECONDS, MANAGER) as run, router(run) as client:
        await client.reload(
            config_text(model_text("m", tmp_path / "m"), model_text("n", tmp_path / "n"))
        )
        before = (await run.catalog()).servings()
        await run.kill_controller()
        table = await run.catalog_after(before)
        while table.servings().keys() != before.keys():
            assert [await client.ask("m"), await client.ask("n")] == [10.0, 20.0]
            table = await run.catalog(table.number)
        export(tmp_path / "m", 3, 30.0)
        await until(client, "m", {1: State.END, 3: State.AVAILABLE})
        assert [await client.ask("m"), await client.ask("n")] == [30.0, 20.0]


async def test_a_router_that_serve_ends_answers_what_has_come_in_and_says_that_it_goes(
    tmp_path: Path,
) -> None:
    export(tmp_path / "m", 1, 10.0)
    models = Models((ModelConfig("m", tmp_path / "m"),))
    (port,) = free_ports(1)
    async with serving(models, ModelOptions(), SECONDS, MANAGER) as run:
        made = await make_router(run, DoorOptions(grpc_port=0, rest_port=port))
        assert await routers_of(run) == {made._id}
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = b'{"instances": [3]}'
        head = "POST /v1/models/m:predict HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode())
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"

        going = made.__del__()
        assert going is not None
        leaving = asyncio.ensure_future(going)
        writer.write(body)
        await leaving

        assert b"200 OK" in await reader.read()
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert await routers_of(run) == set()
        assert made.__del__() is None


async def test_a_router_whose_run_is_over_says_so_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path / "m", 1, 10.0)
    monkeypatch.setattr(controller_loss, "OVER_SECONDS", 0.0)
    models = Models((ModelConfig("m", tmp_path / "m"),))
    async with serving(models, ModelOptions(), SECONDS, MANAGER) as run:
        made = await make_router(run, NO_DOORS)
        await made.check_health()

    await asyncio.wait([made._following])
    with pytest.raises(Unavailable, match=f"{run.name} is over"):
        await made.check_health()
    await made.leave()


async def routers_of(run: ServerRun) -> set[str]:
    """The ids of the routers that the controller knows of."""
    return set(unpacked(await run.controller.collected.remote()).processes)
