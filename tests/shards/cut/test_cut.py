"""What the cut finds in real SavedModels, what it leaves whole, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from shardserve.batching.errors import DataLoss, InvalidArgument, NotFound
from shardserve.shards.cut.cut import CutRule, cut_saved_model
from shardserve.shards.cut.lookups import Combiner, Motif
from tests.saved_models import THRESHOLD

RULE = CutRule(threshold=THRESHOLD)


def _motifs(model, table):
    return sorted(
        (str(lookup.motif), str(lookup.combiner), lookup.weights is not None)
        for lookup in model.tables[table].lookups
    )


def test_gathers_are_found_with_the_tables_they_read(saved_model):
    model = cut_saved_model(saved_model("gathers"), RULE)
    assert {name: len(t.lookups) for name, t in model.tables.items()} == {
        "deep": 1,
        "link": 1,
        "wide": 3,
    }
    assert all(lk.motif is Motif.GATHER for t in model.tables.values() for lk in t.lookups)
    assert model.tables["deep"].table.row_shape == (3, 2)
    assert [variable.name for variable in model.whole] == ["dense"]


def test_ids_from_another_lookup_make_a_second_round(saved_model):
    program = cut_saved_model(saved_model("gathers"), RULE).programs["serving_default"]
    tables = [sorted(lookup.table for lookup in one.lookups) for one in program.rounds]
    assert tables == [["deep", "link", "wide", "wide"], ["wide"]]


def test_sparse_lookups_become_pools_of_all_combiners(saved_model):
    model = cut_saved_model(saved_model("bags"), RULE)
    pool = "segment_pool"
    assert _motifs(model, "bags") == sorted(
        [(pool, "mean", False)] * 2
        + [(pool, "sqrtn", False)] * 2
        + [(pool, "sum", False)] * 2
        + [(pool, "sum", True)] * 6
    )


def test_pooling_by_hand_is_recognised_and_what_is_not_pooling_is_gathered(saved_model):
    model = cut_saved_model(saved_model("hand_written"), RULE)
    assert _motifs(model, "table") == sorted(
        [
            ("reduce_pool", "sum", False),
            ("reduce_pool", "mean", False),
            ("reduce_pool", "mean", False),
            ("reduce_pool", "sum", True),
            ("segment_pool", "sum", False),
            ("segment_pool", "mean", False),
            ("gather", "sum", False),
            ("gather", "sum", False),
        ]
    )


def test_a_lookup_whose_ids_leave_a_loop_waits_for_what_enters_it(saved_model):
    model = cut_saved_model(saved_model("tf1_loop"), RULE)
    rounds = model.programs["serving_default"].rounds
    assert [[lookup.table for lookup in one.lookups] for one in rounds] == [
        ["a/part_0"],
        ["b/part_0"],
    ]
    assert [one.node for one in model.tables["c/part_0"].call_outs] == [
        one.node for one in model.call_outs
    ]


def test_keras_signatures_over_one_variable_share_one_table(saved_model):
    model = cut_saved_model(saved_model("keras_embedding"), RULE)
    (table,) = model.tables.values()
    assert len(table.lookups) == 2
    assert {lookup.combiner for lookup in table.lookups} == {Combiner.MEAN}
    assert set(model.programs) == {"serve", "serving_default"}


def test_ids_that_are_inputs_need_no_ids_stage(saved_model):
    program = cut_saved_model(saved_model("hand_written"), RULE).programs["serving_default"]
    ids = program.inputs["ids"]
    assert [lk.ids for one in program.rounds for lk in one.lookups].count(ids) == 6


def test_nothing_is_cut_below_the_threshold(saved_model):
    model = cut_saved_model(saved_model("gathers"), CutRule(threshold=1 << 30))
    assert not model.tables
    assert not model.programs["serving_default"].rounds
    assert {v.reason for v in model.whole} == {"below the threshold, or not named in the layout"}


def test_only_the_named_tables_are_cut(saved_model):
    model = cut_saved_model(saved_model("gathers"), CutRule(only=frozenset({"wide"})))
    assert set(model.tables) == {"wide"}


def test_a_name_that_is_no_variable_is_refused_with_those_there_are(saved_model):
    with pytest.raises(InvalidArgument, match=r"'nope' is not a variable.*deep, dense, link, wide"):
        cut_saved_model(saved_model("gathers"), CutRule(only=frozenset({"nope"})))


def test_a_named_variable_that_cannot_be_cut_is_refused_naming_the_node(saved_model):
    with pytest.raises(InvalidArgument, match=r"table 'kept' cannot be cut: .*GatherNd"):
        cut_saved_model(saved_model("ragged"), CutRule(only=frozenset({"kept"})))


class _OtherUses(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gathered_in_a_branch = tf.Variable(tf.ones([300, 2]), name="branch")
        self.read_whole = tf.Variable(tf.ones([300, 2]), name="whole")
        self.shape_asked = tf.Variable(tf.ones([300, 2]), name="asked")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="ids")])
    def __call__(self, ids):
        branch = tf.cond(
            tf.size(ids) > 1,
            lambda: tf.gather(self.gathered_in_a_branch, ids),
            lambda: tf.zeros([1, 2]),
        )
        asked = tf.gather(self.shape_asked, ids % tf.shape(self.shape_asked, tf.int64)[0])
        return {
            "branch": branch,
            "whole": tf.gather(self.read_whole, ids) + tf.reduce_max(self.read_whole),
            "asked": asked,
        }


@pytest.fixture(scope="module")
def other_uses(tmp_path_factory):
    path = tmp_path_factory.mktemp("other_uses")
    module = _OtherUses()
    tf.saved_model.save(module, str(path), signatures=module.__call__)
    return path


def test_a_variable_with_one_use_that_no_motif_matches_stays_whole_with_the_node(other_uses):
    model = cut_saved_model(other_uses, RULE)
    reasons = {variable.name: variable.reason for variable in model.whole}
    assert set(model.tables) == {"asked", "branch"}
    assert reasons["whole"].startswith("Max ")
    assert "no motif matches" in reasons["whole"]


def test_a_directory_without_a_model_is_refused_naming_the_file(tmp_path: Path):
    with pytest.raises(NotFound, match=r"saved_model\.pb: no such file"):
        cut_saved_model(tmp_path, RULE)


@pytest.mark.parametrize("kept", [0, 1, 100, 5000])
def test_a_cut_off_graph_is_refused_naming_the_file(saved_model, tmp_path: Path, kept):
    whole = (saved_model("gathers") / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(whole[:kept])
    with pytest.raises(DataLoss, match=r"saved_model\.pb"):
        cut_saved_model(tmp_path, RULE)


def test_tags_that_no_meta_graph_has_are_refused_with_those_there_are(saved_model):
    with pytest.raises(InvalidArgument, match=r"\['gpu', 'serve'\].*\['serve'\]"):
        cut_saved_model(saved_model("gathers"), RULE, ("serve", "gpu"))
