"""Where configurations come from, over files on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardserve.batching.errors import ServingError
from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.model_source import ModelSource, first_models
from shardserve.cluster.options import Models


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

    found = await first_models(source, None, was_open=True, pause=pause)

    assert [one.name for one in found] == ["m"]
    assert len(pauses) == 2


async def test_a_first_start_with_a_wrong_file_fails(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="options"):
        await first_models(source_of(tmp_path, "no such field: 1"), None, was_open=False)
