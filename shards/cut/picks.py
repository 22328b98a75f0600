"""Gives the two outputs of a TopKV2 a node each, so that each can be replaced by a placeholder."""

from __future__ import annotations

from collections.abc import Collection

from tensorflow.core.framework import graph_pb2
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import dtypes

from shardserve.shards.cut.graph import control_inputs, split
from shardserve.shards.cut.scorings import AnyLookup, Scoring


def separate_outputs(
    graph_def: graph_pb2.GraphDef, lookups: Collection[AnyLookup], table_dtypes: dict[str, str]
) -> None:
    """Make, in place, each TopKV2 that a scoring replaces an IdentityN of the scoring's outputs.

    The outputs are nodes that stand where the TopKV2 stood; what they compute is not meant to be
    run. `table_dtypes` has each table's dtype by name.
    """
    picks = {one.node: one for one in lookups if isinstance(one, Scoring) and one.indices}
    for node in [node for node in graph_def.node if node.name in picks]:
        pick = picks[node.name]
        both, *singles = _separated(node, pick.output_dtypes(table_dtypes[pick.table]))
        node.CopyFrom(both)
        graph_def.node.extend(singles)


def _separated(node: NodeDef, outputs: dict[str, str]) -> list[NodeDef]:
    both = NodeDef(name=node.name, op="IdentityN")
    nodes = [both]
    for name, dtype in outputs.items():
        kind = dtypes.as_dtype(dtype).as_datatype_enum
        single = NodeDef(name=split(name)[0], op="Identity", input=node.input[:1])
        single.attr["T"].type = kind
        nodes.append(single)
        both.input.append(name)
        both.attr["T"].list.type.append(kind)
    both.input.extend(f"^{control}" for control in control_inputs(node))
    return nodes
