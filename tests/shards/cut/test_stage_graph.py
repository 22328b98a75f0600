"""What `inspect --stages` says of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shardserve.batching.parameters import BatchingParameters
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.cut.stage_graph import UNBATCHED, stage_graph
from shardserve.shards.model import PlanOptions
from shardserve.shards.stages import BatchingOptions
from tests.region_models import THRESHOLD

SCOPE = "StatefulPartitionedCall/StatefulPartitionedCall"


@pytest.fixture(scope="module")
def plain(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("plain")


@pytest.fixture(scope="module")
def marked(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("marked")


def options(tmp_path: Path, text: str = "{}", *, batched: bool = False) -> PlanOptions:
    path = tmp_path / "stages.yaml"
    path.write_text(text)
    parameters = BatchingParameters(32) if batched else None
    batching = BatchingOptions(parameters, stages_file=path)
    return PlanOptions(shards=2, threshold=THRESHOLD, batching=batching)


def test_stages_stand_in_order_with_what_goes_in_and_out(plain, tmp_path):
    (report,) = stage_graph(plain, options(tmp_path)).signatures
    assert [(stage.step, stage.name) for stage in report.stages] == [
        (1, "ids"),
        (2, "lookups in items"),
        (3, "dense"),
    ]
    ids, lookups, dense = report.stages
    assert ids.feeds == ("serving_default_ids:0",)
    assert ids.fetches == lookups.feeds == (f"{SCOPE}/shifted:0",)
    assert set(dense.feeds) == {*lookups.fetches, "serving_default_x:0"}
    assert {stage.batching for stage in report.stages} == {UNBATCHED}


def test_what_is_batched_is_said_with_its_parameters(plain, tmp_path):
    text = "stages: {ids: {max_batch_size: 8, batch_timeout_micros: 50}}"
    (report,) = stage_graph(plain, options(tmp_path, text, batched=True)).signatures
    ids, lookups, dense = report.stages
    assert ids.batching == "batches of up to 8 rows, a timeout of 50 us"
    assert lookups.batching.startswith("2 messages to a shard at once")
    assert dense.batching == "batches of up to 32 rows, a timeout of 0 us"
    assert report.note == ""


def test_a_named_region_is_a_stage_with_stages_of_its_own(plain, tmp_path):
    text = f"""
    regions:
      tower:
        inputs: [{SCOPE}/joined]
        outputs: [{SCOPE}/scores]
        batching: {{max_batch_size: 4}}
        actors: {{count: 2, num_cpus: 0.5}}
    """
    graph = stage_graph(plain, options(tmp_path, text))
    (report,) = graph.signatures
    names = [stage.name for stage in report.stages]
    assert names == ["ids", "lookups in items", "ids", "region tower", "dense"]
    how = "batches of up to 4 rows, a timeout of 0 us, on 2 actors of 0.5 CPUs"
    assert report.stages[3].batching == how
    (region,) = graph.regions
    assert (region.name, [stage.name for stage in region.stages]) == ("tower", ["dense"])


def test_calls_of_one_function_are_one_region(marked, tmp_path):
    graph = stage_graph(marked, options(tmp_path))
    called = {
        report.name: [stage.name for stage in report.stages if stage.name.startswith("region")]
        for report in graph.signatures
    }
    assert called["counted"] == called["counted_too"]
    assert called["dense"] == called["serving_default"]
    assert len(called["before"]) == 2
    assert graph.by_tensorflow == ()


def test_a_plan_says_whether_there_are_regions(plain, marked, tmp_path):
    assert not plan_model("m", 1, plain, options(tmp_path)).has_regions
    assert plan_model("m", 1, marked, options(tmp_path)).has_regions
