"""Where configurations come from, over files on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from shardserve.batching.errors import ServingError
from shardserve.cluster.configured import ConfiguredModel
from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.model_source import ModelSource, first_models, follow_file
from shardserve.cluster.options import Models
from tests.versioned_models import config_text, model_text


class StopFollowing(Exception):
    """The test has seen enough."""


def source_of(tmp_path: Path, options: str) -> ModelSource:
    (tmp_path / "options").write_text(options)
    config = ModelConfig("m", tmp_path / "m")
    return ModelSource(Models((config,), options_file=tmp_path / "options"), ModelOptions())


async def test_a_controller_made_anew_waits_until_its_files_are_right(tmp_path: Path) -> None:
    source = source_of(tmp_path, "no such field: 1")
    pauses = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            (tmp_path / "options").write_text("")

    found = await first_models(source, None, None, was_open=True, pause=pause)

    assert [one.name for one in found] == ["m"]
    assert len(pauses) == 2


async def test_a_first_start_with_a_wrong_file_fails(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="options"):
        await first_models(source_of(tmp_path, "no such field: 1"), None, None, was_open=False)


async def test_a_controller_made_anew_has_a_file_that_is_broken_as_it_was_followed_last(
    tmp_path: Path,
) -> None:
    file = tmp_path / "models"
    file.write_text("model_config_list {")
    start = (ModelConfig("start", tmp_path / "start"),)
    models = Models(start, config_file=file, poll_seconds=1.0)
    text = config_text(model_text("last", tmp_path / "last"))

    async def names(followed: str | None) -> list[str]:
        source = ModelSource(models, ModelOptions())
        found = await first_models(source, None, followed, was_open=True)
        assert str(file) in source.problem
        return [one.name for one in found]

    assert await names(text) == ["last"]
    assert await names(None) == ["start"]

    file.write_text(config_text(model_text("now", tmp_path / "now")))
    source = ModelSource(models, ModelOptions())
    (now,) = await first_models(source, None, text, was_open=True)
    assert now.name == "now"
    assert source.text == file.read_text()


async def test_a_file_that_cannot_be_followed_for_any_reason_is_noted_and_read_again(
    tmp_path: Path,
) -> None:
    """A root that is a loop of links is no error of ours: `Path.resolve` raises it."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    config = tmp_path / "models"
    config.write_text(config_text(model_text("m", loop / "m")))
    models = Models((), config_file=config, poll_seconds=1.0, roots=(tmp_path,))
    source = ModelSource(models, ModelOptions())
    noted: list[str] = []
    rounds = iter(range(3))

    async def pause(_: float) -> None:
        if next(rounds, None) is None:
            raise StopFollowing

    async def configure(found: Sequence[ConfiguredModel]) -> None:
        assert not found

    with pytest.raises(ExceptionGroup) as raised:
        await follow_file(source, configure, lambda: noted.append(source.problem), pause)

    assert raised.group_contains(StopFollowing)
    assert len(noted) == 1
    assert "RuntimeError" in noted[0]


async def test_an_unexpected_error_of_a_configuration_ends_nothing(tmp_path: Path) -> None:
    config = tmp_path / "models"
    config.write_text("model_config_list {}")
    source = ModelSource(Models((), config_file=config, poll_seconds=1.0), ModelOptions())
    tried = []

    async def pause(_: float) -> None:
        await asyncio.to_thread(int)
        if len(tried) == 2:
            raise StopFollowing

    async def configure(found: Sequence[ConfiguredModel]) -> None:
        tried.append(found)
        raise RuntimeError("nobody thought of this")

    with pytest.raises(ExceptionGroup):
        await follow_file(source, configure, pause=pause)

    assert source.problem == "RuntimeError: nobody thought of this"


def test_options_of_a_model_that_is_not_configured_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = tmp_path / "options"
    options.write_text('model_options { name: "rankr" canary: "5%" }')
    models = Models((ModelConfig("ranker", tmp_path),), options_file=options)
    source = ModelSource(models, ModelOptions())
    source.at_start()
    source.at_start()
    (told,) = caplog.messages
    assert told == f"{options} has options of model 'rankr', which is not configured"
