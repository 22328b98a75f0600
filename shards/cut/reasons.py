"""Why a node that reads a variable keeps it whole, in words."""

from __future__ import annotations

from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.shards.cut.graph import GATHERS, LOOP_OR_BRANCH

_CONTROL_FLOW = frozenset({"If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile"})
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_WRITES = ("Assign", "Scatter", "ResourceScatter", "ResourceApply", "ResourceSparseApply")

#: Operations that make few rows of many, and those of them that some motif may match.
POOLED = frozenset({"Sum", "Mean", "SegmentSum", "SegmentMean"}) | {
    f"SparseSegment{kind}{suffix}"
    for kind in ("Sum", "Mean", "SqrtN")
    for suffix in ("", "WithNumSegments")
}
POOLING = POOLED | {
    *("Max", "Min", "Prod"),
    *(f"{kind}Segment{what}" for kind in ("", "Unsorted") for what in ("Max", "Min", "Prod")),
    "UnsortedSegmentSum",
}


def unmatched(node: NodeDef) -> str:
    """What is in the way of cutting a variable that this node reads."""
    if node.op in LOOP_OR_BRANCH or node.op in _CONTROL_FLOW:
        return f"it is read inside a loop or a branch ({node.op} {node.name})"
    if node.op in _CALLS:
        return f"it is passed to a function that cannot be inlined ({node.op} {node.name})"
    if node.op.startswith(_WRITES):
        return f"{node.op} {node.name} writes to it"
    if node.op in GATHERS:
        return f"{node.op} {node.name} does not gather along the rows, or gathers in batches"
    return f"{node.op} {node.name} reads it in a way that no motif matches"
