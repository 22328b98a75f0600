"""Recognises how a graph reads a variable: every use a lookup, or the reason why not.

From each gather the search climbs to the highest operation that is still linear in the table's
rows; see `docs/design.md`. Nothing here changes the graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.shards.cut.bodies import runs_functions
from shardserve.shards.cut.graph import LOOP_OR_BRANCH, data_inputs, tensor
from shardserve.shards.cut.lookups import BadIds, Combiner, Lookup, Motif
from shardserve.shards.cut.reasons import unmatched
from shardserve.shards.cut.scaling import ScalingFinder
from shardserve.shards.cut.score_motifs import ScoreFinder
from shardserve.shards.cut.scorings import AnyLookup
from shardserve.shards.cut.shapes import ShapedGraph
from shardserve.shards.halves import HALVES

_SPARSE_SEGMENT = {
    "SparseSegmentSum": Combiner.SUM,
    "SparseSegmentSumWithNumSegments": Combiner.SUM,
    "SparseSegmentMean": Combiner.MEAN,
    "SparseSegmentMeanWithNumSegments": Combiner.MEAN,
    "SparseSegmentSqrtN": Combiner.SQRTN,
    "SparseSegmentSqrtNWithNumSegments": Combiner.SQRTN,
}
_SEGMENT = {"SegmentSum": Combiner.SUM, "SegmentMean": Combiner.MEAN}
_REDUCE = {"Sum": Combiner.SUM, "Mean": Combiner.MEAN}
_GATHERS = frozenset({"Gather", "GatherV2"})
_POOLED_DTYPES = frozenset({"float32", "float64"})
#: Only these kernels sum rows of half precision as float32 and round once; others round every sum.
_SPARSE_DTYPES = _POOLED_DTYPES | HALVES


@dataclass(frozen=True)
class Entry:
    """Where a variable, its handle or its value, goes into a loop, a branch or a call."""

    node: NodeDef
    slot: int
    is_value: bool


@dataclass(frozen=True)
class Uses:
    """A variable's uses: lookups, tensors that only ask its shape, and what matched nothing.

    What goes on behind the `entries` is not among them.
    """

    lookups: tuple[AnyLookup, ...]
    shapes: tuple[str, ...]
    reasons: tuple[str, ...]
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class TableNode:
    """A table as the motifs need it: its name, its dtype and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_rank(self) -> int:
        """The rank of one row."""
        return len(self.shape) - 1


@dataclass
class _Found:
    """Uses as they are found."""

    inside: bool
    lookups: list[AnyLookup] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def uses(self) -> Uses:
        found = (self.lookups, self.shapes, self.reasons, self.entries)
        return Uses(*(tuple(one) for one in found))  # type: ignore[arg-type]


def enters(node: NodeDef) -> bool:
    """Whether what the node reads may go into a loop, a branch or a call."""
    return node.op in LOOP_OR_BRANCH or runs_functions(node)


class MotifFinder:
    """Finds uses in one graph, among the nodes `live` only."""

    def __init__(self, graph: ShapedGraph, live: set[str]) -> None:
        self._graph = graph
        self._live = live
        self._conditional = graph.conditional
        self._scores = ScoreFinder(graph, live)
        self._scaling = ScalingFinder(graph, live)

    def uses(
        self,
        start: str,
        table: TableNode,
        *,
        is_value: bool,
        inside: bool = False,
        may_leave: bool = False,
    ) -> Uses:
        """Follow a variable from its handle, or its value (or reference), to all its uses.

        `inside` says that the start lies behind an entry, so that lookups may lie in a loop or a
        branch. With `may_leave` the start itself may be an output: the caller looks.
        """
        found = _Found(inside)
        values = [start] if is_value else []
        for node, slot in () if is_value else self._consumers(start):
            if node.op == "ResourceGather" and slot == 0 and not node.attr["batch_dims"].i:
                self._add_gather(node, table, found)
            elif node.op == "ReadVariableOp":
                values.append(tensor(node.name))
            elif node.op == "VariableShape":
                found.shapes.append(tensor(node.name))
            elif enters(node):
                found.entries.append(Entry(node, slot, is_value=False))
            else:
                found.reasons.append(unmatched(node))
        for value in values:
            self._uses_of_value(value, table, found)
            if not (may_leave and value == start) and self._fetched(value):
                found.reasons.append(f"the whole variable is an output of a signature ({value})")
        return found.uses()

    def uses_of_gathers(self, gathers: Iterable[NodeDef], table: TableNode) -> Uses:
        """The uses of a table that nothing but these reads: gathers, or nodes that stand for one.

        Such a node has the name of the node whose first output it replaces.
        """
        found = _Found(inside=False)
        for gather in gathers:
            self._add_gather(gather, table, found)
        return found.uses()

    def _uses_of_value(self, value: str, table: TableNode, found: _Found) -> None:
        for node, slot in self._consumers(value):
            if node.op in _GATHERS and slot == 0 and self._gathers_rows(node):
                self._add_gather(node, table, found)
            elif node.op in _SPARSE_SEGMENT and slot == 0 and table.dtype in _SPARSE_DTYPES:
                ids = data_inputs(node)[1]
                lookup = self._sparse_segment(node, table, node, ids, None, BadIds.SPARSE)
                self._add(node, lookup, found)
            elif node.op == "Shape":
                found.shapes.append(tensor(node.name))
            elif scoring := self._scores.scoring(node, slot, table.name, table.dtype, table.shape):
                found.lookups.append(scoring)
            elif enters(node):
                found.entries.append(Entry(node, slot, is_value=True))
            else:
                found.reasons.append(unmatched(node))

    def _consumers(self, tensor_name: str) -> list[tuple[NodeDef, int]]:
        uses = self._graph.consumers(tensor_name)
        return [(node, slot) for node, slot in uses if node.name in self._live]

    def _fetched(self, tensor_name: str) -> bool:
        return any(t in self._graph.outputs for t in self._graph.passed_on(tensor_name))

    def _gathers_rows(self, node: NodeDef) -> bool:
        if node.attr["batch_dims"].i:
            return False
        axis = self._graph.constant(data_inputs(node)[2]) if node.op == "GatherV2" else 0
        return axis is not None and int(axis) == 0

    def _add_gather(self, node: NodeDef, table: TableNode, found: _Found) -> None:
        self._add(node, self._pooled(node, table) or self._gather(node, table), found)

    def _add(self, node: NodeDef, lookup: Lookup, found: _Found) -> None:
        if node.name in self._conditional and not found.inside:
            found.reasons.append(f"{node.op} {node.name} runs inside a loop or a branch")
        else:
            found.lookups.append(lookup)

    def _gather(self, node: NodeDef, table: TableNode) -> Lookup:
        return Lookup(
            output=tensor(node.name),
            table=table.name,
            node=node.name,
            motif=Motif.GATHER,
            ids=data_inputs(node)[1],
        )

    def _pooled(self, gather: NodeDef, table: TableNode) -> Lookup | None:
        """The pooled lookup that this gather is the only source of, if it is one."""
        if table.dtype not in _SPARSE_DTYPES:
            return None
        ids = data_inputs(gather)[1]
        consumer, slot = self._only_use(tensor(gather.name)) or (gather, -1)
        if consumer.op in _SPARSE_SEGMENT and slot == 0:
            take = data_inputs(consumer)[1]
            base, position, bad_ids = self._composed(ids, take)
            return self._sparse_segment(consumer, table, gather, base, position, bad_ids)
        if table.dtype not in _POOLED_DTYPES:
            return None
        if consumer.op in _GATHERS and slot == 0 and self._gathers_rows(consumer):
            base, position, bad_ids = self._composed(ids, data_inputs(consumer)[1])
            flat = self._graph.rank(data_inputs(consumer)[1]) == 1
            found = self._weighted(consumer, table, gather, base) if flat else None
            return found and replace(found, take=position, bad_ids=bad_ids)
        return self._weighted(gather, table, gather, ids)

    def _weighted(
        self, rows: NodeDef, table: TableNode, gather: NodeDef, ids: str
    ) -> Lookup | None:
        """Rows, maybe weighted or masked, then summed over segments or over an axis."""
        scaled = self._scaling.of(tensor(rows.name), table.shape)
        use = self._only_use(scaled.rows)
        if use is None or use[1] != 0:
            return None
        consumer = use[0]
        lookup = Lookup(
            output=tensor(consumer.name),
            table=table.name,
            node=gather.name,
            motif=Motif.GATHER,
            ids=ids,
            weights=scaled.weights,
            mask=scaled.mask,
            mask_drops=scaled.mask_drops,
        )
        if consumer.op in _SEGMENT and self._rows_rank(rows, table) == 1:
            return replace(
                lookup,
                motif=Motif.SEGMENT_POOL,
                combiner=_SEGMENT[consumer.op],
                segments=data_inputs(consumer)[1],
            )
        if consumer.op in _REDUCE and self._reduces_last_ids_axis(consumer, rows, table):
            return replace(
                lookup,
                motif=Motif.REDUCE_POOL,
                combiner=_REDUCE[consumer.op],
                keep_dims=bool(consumer.attr["keep_dims"].b),
            )
        return None

    def _sparse_segment(
        self,
        node: NodeDef,
        table: TableNode,
        gather: NodeDef,
        ids: str,
        take: str | None,
        bad_ids: BadIds,
    ) -> Lookup:
        inputs = data_inputs(node)
        return Lookup(
            output=tensor(node.name),
            table=table.name,
            node=gather.name,
            motif=Motif.SEGMENT_POOL,
            ids=ids,
            take=take,
            combiner=_SPARSE_SEGMENT[node.op],
            segments=inputs[2],
            num_segments=inputs[3] if len(inputs) > 3 else None,
            bad_ids=bad_ids,
        )

    def _composed(self, ids: str, take: str) -> tuple[str, str | None, BadIds]:
        """gather(gather(T, ids), take) as ids and positions; both parts of one Unique undo it."""
        graph = self._graph
        unique, position = graph.resolve(ids), graph.resolve(take)
        node = graph.node(unique)
        if node.op == "Unique" and (unique, position) == (f"{node.name}:0", f"{node.name}:1"):
            return data_inputs(node)[0], None, BadIds.UNIQUE_GATHER
        return ids, take, BadIds.GATHER

    def _only_use(self, tensor_name: str) -> tuple[NodeDef, int] | None:
        return self._scaling.only_use(tensor_name)

    def _rows_rank(self, rows: NodeDef, table: TableNode) -> int | None:
        """The rank of the ids behind a gather's result."""
        rank = self._graph.rank(tensor(rows.name))
        return None if rank is None else rank - table.row_rank

    def _reduces_last_ids_axis(self, node: NodeDef, rows: NodeDef, table: TableNode) -> bool:
        axis = self._graph.constant(data_inputs(node)[1])
        if axis is None or axis.size != 1:
            return False
        rank = self._rows_rank(rows, table)
        if rank is not None and rank < 1:
            return False
        at = int(axis.reshape(-1)[0])
        if at < 0:
            return at == -(table.row_rank + 1)
        return rank is not None and at == rank - 1
