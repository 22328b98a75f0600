"""`inspect` explains each decision: what is cut and how, what is not and why."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import tensorflow as tf
from rich.console import Console

from shardserve.cluster.reports import draw_inspection
from shardserve.shards.cut.inspection import Inspection, inspect_model
from shardserve.shards.model import PlanOptions
from tests.saved_models import THRESHOLD
from tests.saved_models_flow import CASES as FLOW
from tests.saved_models_more import CASES as MORE
from tests.saved_models_tf1 import CASES as TF1
from tests.saved_models_tf1 import export_graph, listed, numbers

v1 = tf.compat.v1
CASES = {case.name: case for case in (*TF1, *MORE, *FLOW)}


def inspected(path: Path, threshold: int = THRESHOLD) -> Inspection:
    return inspect_model(path, PlanOptions(threshold=threshold))


def test_parts_that_are_one_table_are_told(saved_model):
    (table,) = inspected(saved_model("tf1_mod_ref")).tables
    assert "4 variables, partitioned by 'mod', are one table" in table.notes
    assert "3 x gather" in table.motifs
    assert "1 x reduce_pool sum" in table.motifs


def test_parts_that_are_not_one_table_say_why(tmp_path):
    def graph():
        ids = v1.placeholder(tf.int64, [None], "ids")
        parts = listed("emb", "mod")
        rows = v1.nn.embedding_lookup(parts, ids, "mod") + tf.gather(parts[0], ids)
        return {"serving_default": ({"ids": ids}, {"rows": rows})}

    export_graph(tmp_path / "m", graph)
    found = inspect_model(tmp_path / "m", PlanOptions(threshold=100))
    assert len(found.tables) == 4
    assert all(
        "emb_0 is one of 4 parts, and read alone too" in table.notes for table in found.tables
    )


def test_a_table_inside_a_loop_or_a_branch_says_which_node_calls_out(saved_model):
    found = inspected(saved_model("control_flow"))
    tables = {report.table.name: report for report in found.tables}
    assert tables.keys() == {"beside", "branch", "loop", "mapped"}
    assert tables["loop"].motifs == ("1 x gather, called out",)
    (note,) = tables["loop"].notes
    assert "while/Gather runs in function while_body" in note
    assert "the running graph calls the shards" in note
    assert [signature.calls_out for signature in found.signatures] == [True]


def test_a_node_of_lowered_control_flow_says_where_it_runs(saved_model):
    tables = {r.table.name: r for r in inspected(saved_model("tf1_lowered_ref")).tables}
    assert tables["third"].cut_at == ("while/cond/GatherV2",)
    assert "runs in a loop or a branch" in tables["third"].notes[0]


class _Refused(tf.Module):
    """Ways to read tables in loops that cannot be called out."""

    def __init__(self) -> None:
        super().__init__()
        self.carried = tf.Variable(numbers(90), name="carried")
        self.reduced = tf.Variable(numbers(90), name="reduced")
        self.chosen = tf.Variable(numbers(90), name="chosen")
        self.compiled = tf.Variable(numbers(90), name="compiled")

    @tf.function(jit_compile=True)
    def _compiled(self, ids):
        return tf.gather(self.compiled, ids)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="ids")])
    def __call__(self, ids):
        few = tf.size(ids) > 2
        carried = tf.while_loop(
            lambda step, table: step < tf.size(ids),
            lambda step, table: (step + 1, table + tf.gather(table, [step])),
            (0, tf.convert_to_tensor(self.carried)),
        )[1]
        chosen = tf.convert_to_tensor(self.chosen)
        return {
            "carried": tf.gather(carried, ids),
            "reduced": tf.cond(few, lambda: tf.reduce_max(self.reduced), lambda: 0.0),
            "chosen": tf.gather(tf.cond(few, lambda: chosen, lambda: chosen + 1.0), ids),
            "compiled": tf.cond(few, lambda: self._compiled(ids), lambda: tf.zeros([1, 6])),
        }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("carried", "reads it in a way that no motif matches (in function while_body"),
        ("reduced", "Max "),
        ("chosen", "hands on the whole variable"),
        ("compiled", "a function that XLA compiles (StatefulPartitionedCall "),
    ],
)
def test_what_no_call_out_can_stand_for_keeps_a_variable_whole_naming_the_node(
    tmp_path, name, said
):
    module = _Refused()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    found = inspect_model(tmp_path, PlanOptions(threshold=THRESHOLD))
    assert not found.tables
    assert said in {v.name: v.reason for v in found.whole}[name]


def test_pooling_that_no_motif_matches_is_named(saved_model):
    half, brain = sorted(inspected(saved_model("narrow")).tables, key=lambda t: -len(t.cut_at))[:2]
    notes = "\n".join((*half.notes, *brain.notes))
    assert "matches no motif of float16 rows" in notes
    assert "is no sum or mean" in notes


class _Reads(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.across = tf.Variable(numbers(90), name="across")
        self.batched = tf.Variable(tf.reshape(numbers(90), [30, 3, 6]), name="batched")
        self.written = tf.Variable(numbers(90), name="written")
        self.whole = tf.Variable(numbers(90), name="whole")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="ids")])
    def __call__(self, ids):
        self.written.assign_add(tf.ones([90, 6]))
        return {
            "across": tf.gather(self.across, ids % 6, axis=1),
            "batched": tf.gather(self.batched, tf.zeros([30, 1], tf.int64), batch_dims=1),
            "written": tf.gather(self.written, ids),
            "whole": tf.identity(self.whole),
        }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("across", "does not gather along the rows"),
        ("batched", "gathers in batches"),
        ("written", "/AssignAddVariableOp writes to it"),
        ("whole", "the whole variable is an output of a signature"),
    ],
)
def test_each_other_way_to_read_a_variable_is_named(tmp_path, name, said):
    module = _Reads()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    found = inspect_model(tmp_path, PlanOptions(threshold=THRESHOLD))
    assert not found.tables
    assert said in {v.name: v.reason for v in found.whole}[name]


def test_notes_are_shown(saved_model):
    drawn = Console(record=True, width=160, file=StringIO())
    draw_inspection(drawn, inspected(saved_model("tf1_div_ref")))
    assert "4 variables, partitioned by 'div', are one table" in drawn.export_text()
