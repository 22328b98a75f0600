from __future__ import annotations

from pathlib import Path
from typing import cast

from shardserve.batching.errors import Internal
from shardserve.cluster.configured import Wanted
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.planning import planned
from shardserve.cluster.progress import Failure
from shardserve.cluster.versions import VersionId


def test_an_unexpected_error_of_a_plan_comes_back_in_one_line() -> None:
    """Ray would wrap it in one whose text is the whole trace of the other process."""
    nowhere = Wanted(VersionId("m", 1), cast(Path, None), "tensorflow", ModelOptions())

    found = planned(nowhere, lambda _nbytes, _total: None)

    assert isinstance(found, Failure)
    assert found.code == Internal.code
    assert "Error: " in found.message
    assert "\n" not in found.message
