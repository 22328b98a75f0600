"""What the stages file says of sequences and loops is what a router serves."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from shardserve.batching.driver import BatchDevice
from shardserve.batching.errors import InvalidArgument
from shardserve.cluster.loading import load_servable
from shardserve.cluster.serving import Runtime
from shardserve.router.servable import RequestContext
from shardserve.router.session import StageThreads
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.cut.stage_graph import stage_graph
from shardserve.shards.model import PlanOptions
from shardserve.shards.stages import BatchingOptions
from tests.step_models import WIDTH, export_encoder

STAGES = """
version: 1
sequences:
  encode:
    step: step
    state: {h: new_h, c: new_c}
    per_step: {x: x}
    returns: {output: all}
loops:
  serving_default: {}
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "1"
    export_encoder(path)
    return path


def options(tmp_path: Path, text: str = STAGES) -> PlanOptions:
    file = tmp_path / "stages.yaml"
    file.write_text(text)
    return PlanOptions(batching=BatchingOptions(stages_file=file))


@pytest.mark.parametrize("text", [STAGES, STAGES.partition("loops:")[0]])
async def test_the_step_and_the_loop_answer_alike(encoder, tmp_path, text):
    plan = plan_model("m", 1, encoder, options(tmp_path, text))
    threads = StageThreads(2)
    servable = load_servable(plan, [], Runtime(threads, BatchDevice(2)))
    x = np.random.default_rng(1).normal(size=(2, 9, WIDTH)).astype(np.float32)
    context = RequestContext("test", math.inf)
    stepped = await servable.run("encode", {"x": x}, ["output", "steps"], context)
    whole = await servable.run("serving_default", {"x": x}, ["outputs"], context)
    threads.close()
    np.testing.assert_allclose(stepped["output"], whole["outputs"], rtol=1e-5, atol=1e-6)
    assert stepped["steps"].tolist() == [9, 9]


def test_inspect_tells_of_loops_and_sequences(encoder, tmp_path):
    graph = stage_graph(encoder, options(tmp_path))
    (loop,) = graph.loops
    assert loop.stepped_by == ("serving_default",)
    how = "steps of 'step', in a running batch of up to 32 rows, in the router"
    assert graph.sequences == (("encode", how),)
    (report,) = [one for one in graph.signatures if one.name == "serving_default"]
    assert any(stage.name == f"loop {loop.node}" for stage in report.stages)
    (loop,) = stage_graph(encoder, PlanOptions()).loops
    assert loop.might_be_by == ("serving_default",)


def test_a_loop_of_a_signature_that_there_is_not_is_refused_when_it_is_planned(encoder, tmp_path):
    text = STAGES.replace("serving_default", "encoder")
    with pytest.raises(InvalidArgument, match=r"loops\.encoder: the model has no such signature"):
        plan_model("m", 1, encoder, options(tmp_path, text))
