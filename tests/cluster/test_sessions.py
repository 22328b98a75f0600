"""TensorFlow's sessions, as flags and files say how they are made."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tensorflow.core.protobuf import config_pb2

from shardserve.cluster.configured import Wanted
from shardserve.cluster.deployment import Deployment
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.sessions import Sessions, sessions_of_stage
from shardserve.cluster.site import Site
from shardserve.cluster.stage_actor import StageSpec, _load
from shardserve.cluster.stage_placement import StageSeat
from shardserve.cluster.versions import VersionId
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.model import PlanOptions
from shardserve.shards.stages import BatchingOptions
from tests import stage_models


def test_a_stage_actor_has_a_thread_for_each_cpu_of_its_own_unless_it_is_said_how_many() -> None:
    said = Sessions(0, 2, b"config")
    assert [sessions_of_stage(said, cpus).intra_op_threads for cpus in (0.1, 1, 2.5)] == [1, 1, 3]
    assert sessions_of_stage(said, 2.0) == Sessions(2, 2, b"config")
    assert sessions_of_stage(Sessions(7), 2.0) == Sessions(7)


async def test_who_follows_tables_hears_nothing_of_progress(tmp_path: Path) -> None:
    heard: list[str] = []
    site = Site("run", bytes(16), can_grow=False, routers=0)
    wanted = Wanted(VersionId("m", 1), tmp_path, "tensorflow", ModelOptions())
    changed, progressed = (partial(heard.append, word) for word in ("changed", "progressed"))
    deployment = Deployment(site, wanted, changed, progressed)

    deployment.verified(10, 100)

    assert heard == ["progressed"]
    assert (deployment.progress.verified, deployment.progress.to_verify) == (10, 100)


async def test_what_is_said_of_sessions_gets_to_those_of_stage_actors(tmp_path: Path) -> None:
    directory, file = tmp_path / "1", tmp_path / "stages.yaml"
    stage_models.export(directory)
    actors = {"actors": {"num_cpus": 0.1, "count": 1, "group": "both"}}
    stage_models.write_stages(file, directory, actors, actors)
    options = PlanOptions(batching=BatchingOptions(stages_file=file))
    config = config_pb2.ConfigProto(log_device_placement=False, isolate_session_state=True)
    said = Sessions(3, 2, config.SerializeToString())
    site = Site("run", bytes(16), can_grow=False, routers=0, sessions=said)
    wanted = Wanted(VersionId("m", 1), directory, "tensorflow", ModelOptions(options))
    deployment = Deployment(site, wanted, lambda: None)
    deployment._plan.set_result(plan_model("m", 1, directory, options))

    spec = await deployment.begins(StageSeat("both", 0))

    assert isinstance(spec, StageSpec)
    loaded = _load(spec.plan, spec.plan.stage_group("both"), spec.sessions)
    made = loaded.runner.session._config
    assert (made.intra_op_parallelism_threads, made.inter_op_parallelism_threads) == (3, 2)
    assert made.isolate_session_state
    loaded.close()
