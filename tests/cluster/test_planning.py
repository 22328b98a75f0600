from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from shardserve.batching.errors import Internal
from shardserve.cluster.configured import Wanted
from shardserve.cluster.lifecycle import PASSING
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.planning import lost_plan, planned
from shardserve.cluster.progress import Failure
from shardserve.cluster.versions import VersionId


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RayTaskError("plan", "Traceback\n a\n b", KeyError("x")), "KeyError: 'x'"),
        (WorkerCrashedError(), "WorkerCrashedError: The worker died unexpectedly"),
        (OutOfMemoryError("no memory\non any\nnode"), "OutOfMemoryError: no memory"),
    ],
)
def test_a_plan_that_ray_lost_is_an_error_of_one_line_that_may_pass(
    error: RayError, said: str
) -> None:
    found = lost_plan(VersionId("m", 1), error)

    assert found.code in PASSING
    assert found.message.startswith(f"m version 1 is not planned: {said}")
    assert "\n" not in found.message


def test_an_unexpected_error_of_a_plan_comes_back_in_one_line() -> None:
    """Ray would wrap it in one whose text is the whole trace of the other process."""
    nowhere = Wanted(VersionId("m", 1), cast(Path, None), "tensorflow", ModelOptions())

    found = planned(nowhere, lambda _nbytes, _total: None)

    assert isinstance(found, Failure)
    assert found.code == Internal.code
    assert "Error: " in found.message
    assert "\n" not in found.message
