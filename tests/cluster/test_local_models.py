"""The local engine as models and versions come, change and go under it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from shardserve.batching.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ServingError,
    Unknown,
)
from shardserve.cluster.lifecycle import Retries
from shardserve.cluster.local_engine import LocalServer
from shardserve.cluster.model_config import All, ModelConfig, parse_model_config
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.options import DoorOptions, Engine, ManagerOptions, Models, ServeOptions
from shardserve.cluster.progress import Start
from shardserve.cluster.versions import VersionId
from shardserve.router.catalog import State
from shardserve.shards.model import PlanOptions
from shardserve.shards.stages import BatchingOptions
from tests import step_models
from tests.versioned_models import THRESHOLD, Client, config_text, export, model_text

OPTIONS = ServeOptions(
    Models(()),
    ModelOptions(PlanOptions(shards=2, threshold=THRESHOLD)),
    ManagerOptions(retries=Retries(0), poll_seconds=0.05),
    DoorOptions(grpc_port=0),
    Engine.LOCAL,
)
STAGES = {
    "sequences": {
        "encode": {
            "step": "step",
            "state": {"h": "new_h", "c": "new_c"},
            "per_step": {"x": "x"},
            "returns": {"output": "all"},
            "actors": {},
        }
    },
    "loops": {"serving_default": {"actors": {}}},
}
NOWHERE: Callable[[object], None] = lambda _: None  # noqa: E731


@dataclass(frozen=True)
class Served(Client):
    """A client of a local server, and the server."""

    server: LocalServer | None = None

    async def until(self, model: str, states: dict[int, State]) -> None:
        """Return when the versions of a model are in these states."""
        while await self.known(model) != states:
            await pause()

    async def known(self, model: str) -> dict[int, State]:
        """The states of a model's versions, if there are any yet."""
        try:
            return await self.states(model)
        except NotFound:
            return {}


@asynccontextmanager
async def served(
    configs: Sequence[ModelConfig], options: ServeOptions = OPTIONS
) -> AsyncIterator[Served]:
    """A server of these models, its start over, that ends with the block."""
    server = LocalServer(
        replace(options, models=replace(options.models, configs=tuple(configs))), NOWHERE
    )
    try:
        async with asyncio.timeout(40.0):
            await server.start()
            yield Served(server.endpoints.prediction, server=server)
    finally:
        await server.close()


async def pause() -> None:
    """Let what is under way go on."""
    await asyncio.sleep(0.01)


def config_of(base_path: Path, **fields: object) -> ModelConfig:
    return ModelConfig(base_path.name, base_path, **fields)  # type: ignore[arg-type]


async def test_a_version_that_comes_is_served_and_the_one_before_answers_until_then(
    tmp_path: Path,
) -> None:
    export(tmp_path / "m", 1, 10.0)
    async with served([config_of(tmp_path / "m")]) as client:
        assert await client.ask("m") == 10.0
        export(tmp_path / "m", 2, 20.0)
        answers = []
        while not answers or answers[-1] != 20.0:
            answers.append(await client.ask("m"))
        assert set(answers) <= {10.0, 20.0}
        await client.until("m", {1: State.END, 2: State.AVAILABLE})
        with pytest.raises(NotFound, match="Specific"):
            await client.ask("m", version=1)


async def test_progress_is_shown_until_the_start_is_over(tmp_path: Path) -> None:
    export(tmp_path / "m", 1, 10.0)
    shown: list[Start] = []
    options = replace(OPTIONS, models=Models((config_of(tmp_path / "m"),)))
    server = LocalServer(options, shown.append)
    try:
        async with asyncio.timeout(40.0):
            await server.start()
            assert VersionId("m", 1) in shown[-1].versions
            shown.clear()
            export(tmp_path / "m", 2, 20.0)
            client = Served(server.endpoints.prediction, server=server)
            await client.until("m", {1: State.END, 2: State.AVAILABLE})
            assert not shown
    finally:
        await server.close()


async def test_versions_that_go_end_and_one_that_comes_back_is_loaded_again(tmp_path: Path) -> None:
    export(tmp_path / "m", 1, 10.0)
    export(tmp_path / "m", 2, 20.0)
    async with served([config_of(tmp_path / "m", policy=All())]) as client:
        await client.until("m", {1: State.AVAILABLE, 2: State.AVAILABLE})
        assert await client.ask("m", version=1) == 10.0
        shutil.rmtree(tmp_path / "m" / "2")
        await client.until("m", {1: State.AVAILABLE, 2: State.END})
        assert await client.ask("m") == 10.0
        export(tmp_path / "m", 2, 21.0)
        await client.until("m", {1: State.AVAILABLE, 2: State.AVAILABLE})
        assert await client.ask("m") == 21.0


async def test_a_broken_version_says_why_keeps_the_one_before_and_is_tried_when_it_is_mended(
    tmp_path: Path,
) -> None:
    export(tmp_path / "m", 1, 10.0)
    async with served([config_of(tmp_path / "m")]) as client:
        (tmp_path / "m" / "2").mkdir()
        (tmp_path / "m" / "2" / "saved_model.pb").write_bytes(b"\xff")
        await client.until("m", {1: State.AVAILABLE, 2: State.END})
        assert await client.ask("m") == 10.0
        shutil.rmtree(tmp_path / "m" / "2")
        export(tmp_path / "m", 2, 20.0)
        await client.until("m", {1: State.END, 2: State.AVAILABLE})
        assert await client.ask("m") == 20.0


async def test_requests_that_have_begun_end_before_their_version_is_freed(tmp_path: Path) -> None:
    export(tmp_path / "m", 1, 10.0)
    async with served([config_of(tmp_path / "m")]) as client:
        assert client.server is not None
        catalog = client.server.endpoints.catalog
        request = catalog.enter()
        export(tmp_path / "m", 2, 20.0)
        await client.until("m", {1: State.UNLOADING, 2: State.AVAILABLE})
        assert await client.ask("m") == 20.0
        assert (await client.states("m"))[1] is State.UNLOADING
        catalog.leave(request)
        await client.until("m", {1: State.END, 2: State.AVAILABLE})


async def test_a_model_whose_base_path_is_missing_is_waited_for_and_stalls_nobody(
    tmp_path: Path,
) -> None:
    export(tmp_path / "there", 1, 10.0)
    configs = [config_of(tmp_path / "missing"), config_of(tmp_path / "there")]
    said: list[str] = []
    options = replace(OPTIONS, models=replace(OPTIONS.models, configs=tuple(configs)))
    server = LocalServer(options, lambda start: said.extend(start.warnings))
    client = Served(server.endpoints.prediction, server=server)
    starting = asyncio.ensure_future(server.start())
    try:
        async with asyncio.timeout(40.0):
            await client.until("there", {1: State.AVAILABLE})
            assert await client.ask("there") == 10.0
            assert not starting.done()
            assert any(str(tmp_path / "missing") in text for text in said)
            export(tmp_path / "missing", 5, 50.0)
            await starting
            assert await client.ask("missing") == 50.0
    finally:
        await server.close()


async def test_sequences_and_loops_with_actors_are_stepped_here_and_that_is_said(
    tmp_path: Path,
) -> None:
    step_models.export_encoder(tmp_path / "m" / "1")
    stages = tmp_path / "stages.yaml"
    stages.write_text(yaml.safe_dump(STAGES))
    plan = PlanOptions(batching=BatchingOptions(stages_file=stages))
    models = Models((config_of(tmp_path / "m"),))
    said: list[str] = []
    server = LocalServer(
        replace(OPTIONS, models=models, defaults=ModelOptions(plan)),
        lambda start: said.extend(start.warnings),
    )
    try:
        await server.start()
        here = "runs in this process: it has actors only with --engine=ray"
        assert f"sequence encode {here}" in said
        assert any(text.startswith("loop ") and text.endswith(here) for text in said)
        (servable,) = [
            one.servable for one in server.endpoints.catalog.models["m"].versions.values()
        ]
        assert servable is not None
        kinds = {name.split("/")[1] for name in servable.stage_counts()}
        assert kinds >= {"sequences", "loops"}
    finally:
        await server.close()


async def test_a_start_with_one_broken_version_fails_with_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "saved_model.pb").write_bytes(b"\xff")
    with pytest.raises(ServingError, match=str(tmp_path / "m" / "1")) as caught:
        async with served([config_of(tmp_path / "m")]):
            pass
    assert not isinstance(caught.value, Unknown)


async def test_a_reload_adds_and_removes_models_and_moves_labels(tmp_path: Path) -> None:
    for version, number in ((1, 10.0), (2, 20.0)):
        export(tmp_path / "a", version, number)
    export(tmp_path / "b", 7, 70.0)
    every = "model_version_policy { all {} } version_labels { key: 'stable' value: %d }"
    async with served([config_of(tmp_path / "a")]) as client:
        await client.reload(
            config_text(model_text("a", tmp_path / "a", every % 1), model_text("b", tmp_path / "b"))
        )
        assert await client.ask("b") == 70.0
        assert await client.ask("a", label="stable") == 10.0
        await client.reload(config_text(model_text("a", tmp_path / "a", every % 2)))
        assert await client.ask("a", label="stable") == 20.0
        await client.until("b", {7: State.END})
        with pytest.raises(FailedPrecondition, match="version 3 of model a"):
            await client.reload(config_text(model_text("a", tmp_path / "a", every % 3)))
        assert await client.ask("a", label="stable") == 20.0


async def test_a_reload_that_cannot_be_done_leaves_what_is_served(tmp_path: Path) -> None:
    export(tmp_path / "a", 1, 10.0)
    roots = replace(OPTIONS, models=replace(OPTIONS.models, roots=(tmp_path,)))
    async with served([config_of(tmp_path / "a")], roots) as client:
        with pytest.raises(InvalidArgument, match="absolute path"):
            await client.reload(config_text(model_text("a", Path("relative"))))
        with pytest.raises(PermissionDenied, match="/etc"):
            await client.reload(config_text(model_text("a", Path("/etc"))))
        other = config_text(model_text("a", tmp_path / "a")).replace('"tensorflow"', '"onnx"')
        with pytest.raises(InvalidArgument, match="platform"):
            await client.reload(other)
        assert await client.ask("a") == 10.0


async def test_a_reload_whose_model_fails_says_so_in_the_originals_words(tmp_path: Path) -> None:
    export(tmp_path / "a", 1, 10.0)
    (tmp_path / "b" / "1").mkdir(parents=True)
    (tmp_path / "b" / "1" / "saved_model.pb").write_bytes(b"\xff")
    async with served([config_of(tmp_path / "a")]) as client:
        both = config_text(model_text("a", tmp_path / "a"), model_text("b", tmp_path / "b"))
        with pytest.raises(Unknown, match=r"^1 model\(s\) did not become available: \{\{\{name: b"):
            await client.reload(both)
        assert await client.ask("a") == 10.0


async def test_a_version_that_lies_outside_of_the_roots_is_not_loaded(tmp_path: Path) -> None:
    export(tmp_path / "inside" / "a", 1, 10.0)
    export(tmp_path / "outside", 2, 20.0)
    models = replace(OPTIONS.models, roots=(tmp_path / "inside",))
    async with served(
        [config_of(tmp_path / "inside" / "a")], replace(OPTIONS, models=models)
    ) as client:
        (tmp_path / "inside" / "a" / "2").symlink_to(tmp_path / "outside" / "2")
        await client.until("a", {1: State.AVAILABLE, 2: State.END})
        assert await client.ask("a") == 10.0


async def test_the_configuration_file_is_read_again_and_a_bad_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(tmp_path / "a", 1, 10.0)
    export(tmp_path / "b", 2, 20.0)
    file = tmp_path / "models.config"
    only_a = config_text(model_text("a", tmp_path / "a"))
    file.write_text(only_a)
    models = Models((), config_file=file, poll_seconds=0.05)
    configs = parse_model_config(only_a, str(file))
    async with served(configs, replace(OPTIONS, models=models)) as client:
        file.write_text("model_config_list { config { nonsense } }")
        while str(file) not in caplog.text:
            await pause()
        assert await client.ask("a") == 10.0
        file.write_text(config_text(model_text("b", tmp_path / "b")))
        await client.until("b", {2: State.AVAILABLE})
        await client.until("a", {1: State.END})
        assert await client.ask("b") == 20.0
