"""What a router loads for a plan: whole, batched whole, or stage by stage."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shardserve.batching.driver import BatchDevice
from shardserve.batching.parameters import BatchingParameters
from shardserve.cluster.loading import load_servable
from shardserve.cluster.serving import Runtime, slots_of_stages
from shardserve.router.admitting import AdmittingServable
from shardserve.router.batched import BatchedServable
from shardserve.router.servable import Array, RequestContext, Servable
from shardserve.router.session import StageThreads
from shardserve.router.sharded import ShardedServable
from shardserve.router.whole import WholeServable
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.local import LocalChannel
from shardserve.shards.model import ModelPlan, PlanOptions
from shardserve.shards.shard import Shard
from shardserve.shards.stages import BatchingOptions
from tests.region_models import THRESHOLD
from tests.uncut import Uncut

SERVER = BatchingOptions(BatchingParameters(max_batch_size=32, num_batch_threads=2))
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def plain(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("plain")


@pytest.fixture(scope="module")
def marked(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("marked")


def plan(path: Path, threshold: int, batching: BatchingOptions) -> ModelPlan:
    return plan_model("m", 1, path, PlanOptions(shards=2, threshold=threshold, batching=batching))


def admitted(servable: Servable) -> Servable:
    """Without who refuses what would be late."""
    return servable.servable if isinstance(servable, AdmittingServable) else servable


@pytest.mark.parametrize(
    ("server", "threads", "slots"),
    [
        (None, 4, 3),
        (BatchingParameters(), 4, 3),
        (BatchingParameters(), 1, 1),
        (BatchingParameters(num_batch_threads=6), 4, 6),
    ],
)
def test_batches_leave_a_thread_to_other_stages_unless_their_number_is_told(
    server: BatchingParameters | None, threads: int, slots: int
) -> None:
    assert slots_of_stages(server, threads) == slots


def test_whole_requests_are_joined_where_the_stages_file_says_so(
    plain: Path, threads: StageThreads, tmp_path: Path
) -> None:
    file = tmp_path / "stages.yaml"
    file.write_text("stages: {requests: {max_batch_size: 8}}")
    found = plan(plain, THRESHOLD, BatchingOptions(stages_file=file))
    shards = [Shard.load(found.sources, found.slices_of_shard(n)) for n in range(2)]
    servable = load_servable(
        found, [LocalChannel(one) for one in shards], Runtime(threads, BatchDevice(2))
    )
    assert type(admitted(servable)) is BatchedServable
    assert set(servable.stage_counts()) == {"m/requests", "m/admission"}


@pytest.mark.parametrize(
    ("model", "threshold", "batching", "kind"),
    [
        ("plain", 1 << 30, BatchingOptions(), WholeServable),
        ("plain", 1 << 30, SERVER, BatchedServable),
        ("plain", THRESHOLD, SERVER, ShardedServable),
        ("marked", 1 << 30, BatchingOptions(), ShardedServable),
        ("marked", THRESHOLD, SERVER, ShardedServable),
    ],
)
def test_each_plan_is_served_in_its_way_and_answers_as_tensorflow_does(
    model: str,
    threshold: int,
    batching: BatchingOptions,
    kind: type,
    threads: StageThreads,
    request: pytest.FixtureRequest,
) -> None:
    directory = request.getfixturevalue(model)
    found = plan(directory, threshold, batching)
    shards = [Shard.load(found.sources, found.slices_of_shard(n)) for n in range(2)]
    channels = [LocalChannel(shard) for shard in shards]
    servable = load_servable(found, channels, Runtime(threads, BatchDevice(2)))
    assert isinstance(servable, AdmittingServable) == (batching is SERVER)
    assert type(admitted(servable)) is kind

    feeds: dict[str, Array] = {"ids": np.array([3, 59], np.int64)}
    if model == "plain":
        feeds["x"] = np.ones((2, 2), np.float32)
    outputs = tuple(servable.signatures["serving_default"].outputs)
    context = RequestContext("test", math.inf)
    got = asyncio.run(servable.run("serving_default", feeds, outputs, context))
    uncut = Uncut(directory)
    for alias, value in uncut.answer("serving_default", feeds).items():
        np.testing.assert_allclose(got[alias], value, rtol=1e-5, atol=1e-5)
    uncut.close()


def test_a_model_without_parameters_of_its_own_is_not_batched_where_each_has_its_own(
    plain: Path, threads: StageThreads
) -> None:
    per_model = BatchingOptions(SERVER.parameters, per_model=True)
    found = plan(plain, 1 << 30, per_model)
    assert type(load_servable(found, [], Runtime(threads, BatchDevice(2)))) is WholeServable
    own = plain / "batching_params.pbtxt"
    own.write_text("max_batch_size { value: 4 }")
    try:
        assert plan(plain, 1 << 30, per_model).stages.dense == BatchingParameters(
            4, num_batch_threads=2
        )
    finally:
        own.unlink()
