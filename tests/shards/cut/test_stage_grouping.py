"""Which stage actors a model's regions ask for, and which regions are refused them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.actors_form import ActorsEntry
from shardserve.shards.cut.cut import CutModel, CutRule, cut_saved_model
from shardserve.shards.cut.needs import Parts, only
from shardserve.shards.cut.stage_grouping import stage_groups
from shardserve.shards.cut.step_loops import LOOPS
from shardserve.shards.regions import ActorOptions, Region
from shardserve.shards.sequences_form import LoopEntry, SequenceEntry, StepBatching, Take
from shardserve.shards.stage_groups import StageGroup
from shardserve.shards.stages import Stages
from tests.region_models import THRESHOLD

STAGES = Stages()


class Counting(tf.Module):
    """Counts its calls in a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = tf.Variable(0.0, name="calls")
        self.kernel = tf.Variable([[2.0]], name="kernel")

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
    def __call__(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        tower = tf.matmul(tf.identity(x, name="inside"), self.kernel)
        with tf.control_dependencies([tf.shape(tower)]):
            calls = self.calls.assign_add(1.0, read_value=True)
        return {"y": tf.identity(tower * calls, name="counted")}


class Looping(tf.Module):
    """A loop, and beside it what can be a region."""

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
    def __call__(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        counted = tf.while_loop(
            lambda at, _: at < 3, lambda at, total: (at + 1, total + 1.0), (0, x)
        )
        return {"y": counted[1], "doubled": tf.identity(x * 2.0)}


@pytest.fixture(scope="module")
def marked(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("marked")


@pytest.fixture(scope="module")
def cut_with(marked: Path) -> Callable[..., CutModel]:
    """The marked model, cut with actors for regions that it marks."""

    def cut(actors: dict[str, ActorOptions]) -> CutModel:
        regions = [Region(name, (), (), actors=options) for name, options in actors.items()]
        return cut_saved_model(marked, CutRule(threshold=THRESHOLD), regions=regions)

    return cut


def towers(cut_with: Callable[..., CutModel]) -> list[str]:
    """The regions that the model marks, those that read a variable first."""
    regions = cut_with({}).regions
    return sorted(regions, key=lambda name: (not reads(cut_with({}), name), name))


def reads(cut: CutModel, name: str) -> bool:
    return bool(only(cut, Parts(regions=frozenset([name]))).variables)


def test_without_actors_there_are_no_groups(cut_with) -> None:
    assert stage_groups(cut_with({}), STAGES, "") == ()


def test_a_region_that_the_model_marks_gets_the_actors_that_it_is_given(cut_with) -> None:
    name = towers(cut_with)[0]
    cut = cut_with({name: ActorOptions(count=3, num_cpus=0.5, num_gpus=1)})
    (group,) = stage_groups(cut, STAGES, "")

    assert (group.name, group.regions) == (name, (name,))
    assert (group.count, group.num_cpus, group.num_gpus) == (3, 0.5, 1)
    weights = sum(
        variable.nbytes for variable in only(cut, Parts(regions=frozenset([name]))).variables
    )
    assert weights > 0
    assert group.nbytes == cut.graph_def.ByteSize() + weights


def test_regions_of_one_group_share_its_actors(cut_with) -> None:
    one, other, *_ = towers(cut_with)
    shared = ActorOptions(group="gpu")
    (group,) = stage_groups(cut_with({one: shared, other: shared}), STAGES, "")
    assert group.name == "gpu"
    assert group.regions == tuple(sorted((one, other)))

    with pytest.raises(InvalidArgument, match="are of group 'gpu', whose actors are alike"):
        stage_groups(cut_with({one: shared, other: replace(shared, count=2)}), STAGES, "")


def test_the_fingerprint_tells_regions_plans_and_groups_apart(cut_with) -> None:
    one, other, *_ = towers(cut_with)
    cut = cut_with({one: ActorOptions(), other: ActorOptions()})
    found = {
        group.fingerprint for digest in ("a", "b") for group in stage_groups(cut, STAGES, digest)
    }
    assert len(found) == 4
    assert stage_groups(cut, STAGES, "a") == stage_groups(cut, STAGES, "a")


def test_the_fingerprint_tells_apart_how_many_rows_of_a_loop_are_stepped(saved_model) -> None:
    cut = cut_saved_model(saved_model("lstm"), CutRule(only=frozenset()))

    def groups(rows: int) -> tuple[StageGroup, ...]:
        entry = LoopEntry(batching=StepBatching(max_batch_size=rows), actors=ActorsEntry())
        return stage_groups(cut, Stages(loops={"serving_default": entry}), "a")

    assert groups(8) == groups(8)
    assert groups(8)[0].fingerprint != groups(9)[0].fingerprint


@pytest.mark.parametrize("form", ["sequences/sums", "loops/{loop}", "{loop}"])
def test_a_region_of_the_name_of_a_sequence_or_a_loop_is_refused(tmp_path: Path, form: str) -> None:
    module = Looping()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    (loop,) = [n.name for n in cut_saved_model(tmp_path, CutRule()).graph_def.node if n.op in LOOPS]
    name = form.format(loop=loop)
    region = Region(name, ("x",), ("doubled",))
    cut = cut_saved_model(tmp_path, CutRule(), regions=[region])
    assert stage_groups(cut, STAGES, "") == ()
    sums = SequenceEntry(step="add", state={"x": "y"}, returns={"y": Take.LAST})
    stages = Stages(sequences={"sums": sums}, loops={"serving_default": LoopEntry()})
    with pytest.raises(InvalidArgument, match=f"region '{name}': a sequence or a loop of the mod"):
        stage_groups(cut, stages, "")


def test_a_name_that_the_model_does_not_mark_is_refused_with_those_it_does(cut_with) -> None:
    with pytest.raises(InvalidArgument, match="region 'tower': the model marks none of that name"):
        cut_with({"tower": ActorOptions()})


def test_a_region_that_writes_to_a_variable_is_refused_actors(tmp_path: Path) -> None:
    module = Counting()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    region = Region("counting", ("x",), ("y",), actors=ActorOptions())
    cut = cut_saved_model(tmp_path, CutRule(), regions=[region])
    with pytest.raises(InvalidArgument, match=r"may write what others read.* run in the router"):
        stage_groups(cut, STAGES, "")
