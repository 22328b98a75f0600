"""Which stage actors a model's sequences and loops ask for, and which are refused them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf
import yaml

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.cut.stage_graph import stage_graph
from shardserve.shards.model import PlanOptions
from shardserve.shards.stage_groups import StageGroup
from shardserve.shards.stages import BatchingOptions
from tests import loop_models, step_models

SUM = {
    "step": "step",
    "state": {"total": "sum"},
    "per_step": {"x": "x"},
    "returns": {"sum": "last"},
}
ENCODE = {
    "step": "step",
    "state": {"h": "new_h", "c": "new_c"},
    "per_step": {"x": "x"},
    "returns": {"output": "all"},
}
DECODE = {
    "step": "next",
    "state": {"state": "new_state"},
    "feedback": {"token": "next_token"},
    "initial": {"state": {"output": "state"}},
    "before": "encode",
    "returns": {"next_token": "all"},
}


class Counting(tf.Module):
    """A running sum that counts its steps in a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = tf.Variable(0.0, name="steps")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="x"),
            tf.TensorSpec([None], tf.float32, name="total"),
        ]
    )
    def step(self, x: tf.Tensor, total: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"sum": total + x + 0.0 * self.steps.assign_add(1.0)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "1"
    step_models.export_encoder(path)
    return path


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its embedding is read inside of loops, too."""
    path = tmp_path_factory.mktemp("decoder") / "1"
    step_models.export_decoder(path)
    return path


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., PlanOptions]:
    def written(threshold: int = 1 << 20, **sections: object) -> PlanOptions:
        file = tmp_path / "stages.yaml"
        file.write_text(yaml.safe_dump(sections))
        return PlanOptions(threshold=threshold, batching=BatchingOptions(stages_file=file))

    return written


@pytest.fixture
def groups(options: Callable[..., PlanOptions]) -> Callable[..., tuple[StageGroup, ...]]:
    def planned(path: Path, **sections: object) -> tuple[StageGroup, ...]:
        return plan_model("m", 1, path, options(**sections)).stage_groups

    return planned


def test_a_sequence_and_a_loop_have_groups_of_their_own_or_share_one(encoder, groups) -> None:
    loop, sequence = groups(
        encoder,
        sequences={"encode": {**ENCODE, "actors": {"num_gpus": 1}}},
        loops={"serving_default": {"actors": {"count": 2}}},
    )
    assert (loop.name, loop.count, loop.sequences) == ("loops/serving_default", 2, ())
    (node,) = loop.loops
    assert loop.stages == (f"loops/{node}",)
    assert (sequence.name, sequence.num_gpus) == ("sequences/encode", 1)
    assert sequence.stages == ("sequences/encode",)
    assert loop.fingerprint != sequence.fingerprint

    shared = {"actors": {"group": "gpu"}}
    (both,) = groups(
        encoder, sequences={"encode": {**ENCODE, **shared}}, loops={"serving_default": shared}
    )
    assert both.stages == ("sequences/encode", f"loops/{node}")
    assert both.by_kind == {"sequence": ("encode",), "loop": (node,)}
    # The cell's weights are one layer's: kernel, recurrent kernel and bias.
    units = 4 * step_models.UNITS
    weights = 4 * units * (step_models.WIDTH + step_models.UNITS + 1)
    assert both.nbytes > sequence.nbytes - weights > 0

    with pytest.raises(InvalidArgument, match=r"sequences\.encode and loops\.serving_default are"):
        groups(
            encoder,
            sequences={"encode": {**ENCODE, **shared}},
            loops={"serving_default": {"actors": {"group": "gpu", "count": 2}}},
        )


def test_what_is_answered_otherwise_has_another_fingerprint(encoder, groups) -> None:
    def digest(**changed: object) -> str:
        (group,) = groups(encoder, sequences={"encode": {**ENCODE, "actors": {}, **changed}})
        return group.fingerprint

    assert digest() != digest(returns={"output": "last"})
    assert digest() == digest(batching={"max_batch_size": 7})


def test_a_step_that_writes_to_a_variable_is_refused_actors(tmp_path, groups) -> None:
    module = Counting()
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"step": module.step})
    words = r"sequences\.sum: .* may write what others read.* run in the router"
    with pytest.raises(InvalidArgument, match=words):
        groups(tmp_path / "1", sequences={"sum": {**SUM, "actors": {}}})


def test_a_step_that_looks_up_in_a_loop_is_refused_actors(decoder, groups) -> None:
    entry = {**DECODE, "step": "serving_default", "before": "serving_default", "actors": {}}
    table = step_models.VOCABULARY * step_models.WIDTH * 4
    words = r"sequences\.decode looks up in a table in a loop or a branch"
    with pytest.raises(InvalidArgument, match=words):
        groups(decoder, threshold=table, sequences={"decode": entry})


def test_a_signature_that_there_is_not_is_refused_by_its_field(encoder, groups) -> None:
    words = r"sequences\.encode\.before: the model has no signature 'start'; it has: serving_def"
    with pytest.raises(InvalidArgument, match=words):
        groups(encoder, sequences={"encode": {**ENCODE, "before": "start", "actors": {}}})


def test_actors_for_loops_that_cannot_be_stepped_are_refused_with_the_reason(
    tmp_path, groups
) -> None:
    loop_models.WHOLE["counts"][0](tmp_path / "1")
    words = r"loops\.serving_default\.actors: none .* can be stepped: .* more than counting"
    with pytest.raises(InvalidArgument, match=words):
        groups(tmp_path / "1", loops={"serving_default": {"actors": {}}})


def test_inspect_tells_where_steps_are_taken(encoder, options) -> None:
    actors = {"actors": {"count": 2, "num_gpus": 1, "group": "gpu"}}
    sections = {"sequences": {"encode": {**ENCODE, **actors}}, "loops": {"serving_default": actors}}
    graph = stage_graph(encoder, options(**sections))
    where = "on 2 actors of 1 CPUs and 1 GPUs, group gpu"
    assert dict(graph.sequences)["encode"].endswith(where)
    (loop,) = graph.loops
    assert loop.where == where
    (report,) = [one for one in graph.signatures if one.name == "serving_default"]
    assert f"stepped for all requests together, {where}" in {one.batching for one in report.stages}
