"""The one graph of a cut model: it is changed in place, and packed while nobody reads it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import graph_pb2

from shardserve.shards.cut.cut import CutRule, cut_saved_model
from shardserve.shards.cut.rewrite import keep_nodes
from tests.saved_models import THRESHOLD


@settings(max_examples=30)
@given(st.lists(st.booleans(), max_size=40))
def test_the_nodes_that_are_kept_stay_as_they_are_and_in_order(kept):
    graph_def = graph_pb2.GraphDef()
    for number in range(len(kept)):
        graph_def.node.add(name=f"n{number}", op="NoOp", device=f"d{number}")
    wanted = [
        node.SerializeToString() for node, one in zip(graph_def.node, kept, strict=True) if one
    ]

    keep_nodes(graph_def, {f"n{number}" for number, one in enumerate(kept) if one})

    assert [node.SerializeToString() for node in graph_def.node] == wanted


def test_a_packed_model_has_the_same_graph_and_makes_the_same_programs(saved_model):
    cut = cut_saved_model(saved_model("gathers"), CutRule(threshold=THRESHOLD))
    graph_def = graph_pb2.GraphDef()
    graph_def.CopyFrom(cut.graph_def)

    for _ in range(2):
        cut.pack()

        assert cut.graph_def == graph_def
        for name, program in cut.programs.items():
            assert cut.program_for(name, program.outputs) == program
