"""Tables that a graph keeps in slices of one checkpoint entry, and reads as their concatenation.

TensorFlow 1's partitioned variable, of rows or of columns, is such where it is used as a tensor
(`concat` of all its parts), and where each part of the columns is gathered from, with the same ids,
and the rows are put together after that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.shards.cut.graph import data_inputs, tensor
from shardserve.shards.cut.partitioned import gathered_variable
from shardserve.shards.cut.shapes import ShapedGraph
from shardserve.shards.cut.stored import StoredRows, sliced_box
from shardserve.shards.cut.variables import Variable, handle_tensor


@dataclass(frozen=True)
class ConcatenatedTable:
    """Variables that are slices of one table, in order along `axis`.

    `values` are the tensors that are the whole table; each of `gathers` stands for rows that are
    put together from gathers of its second input, and has the name of the node that it replaces.
    `nodes` are the variables' nodes, in whatever signature.
    """

    name: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Variable, ...]
    nodes: tuple[str, ...]
    values: tuple[str, ...]
    gathers: tuple[NodeDef, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    @property
    def stored(self) -> StoredRows:
        """Where the table's rows lie: it is all of one entry."""
        return StoredRows(self.key, self.shape[0], 0, self.shape[0])


@dataclass(frozen=True)
class _Concat:
    """One concatenation of all parts, or of rows gathered from each; `nodes` read the parts."""

    node: NodeDef
    parts: tuple[Variable, ...]
    axis: int
    shape: tuple[int, ...]
    ids: str | None
    nodes: frozenset[str]


def find_concatenated(
    graph: ShapedGraph, live: Iterable[str], variables: Mapping[str, Variable]
) -> tuple[ConcatenatedTable, ...]:
    """Look for concatenations among the nodes `live`.

    A variable that is read in any other way as well is no part of a table.
    """
    alive = set(live)
    groups: dict[tuple[str, ...], list[_Concat]] = defaultdict(list)
    for name in sorted(alive):
        found = _concat(graph, graph.nodes[name], variables)
        if found is not None:
            key = (found.parts[0].key, *(part.slice_spec for part in found.parts))
            groups[key].append(found)
    taken = {variable.shared_name for variable in variables.values()}
    return tuple(
        _table(group, taken) for group in groups.values() if _read_all(graph, alive, group)
    )


def _table(group: Sequence[_Concat], taken: set[str]) -> ConcatenatedTable:
    first = group[0].parts[0]
    name = first.key_name
    whole = [one for one in group if one.ids is None]
    return ConcatenatedTable(
        name=first.shared_name if name in taken else name,
        key=first.key,
        dtype=first.dtype,
        shape=group[0].shape,
        parts=group[0].parts,
        nodes=tuple(dict.fromkeys(part.node for one in group for part in one.parts)),
        values=tuple(tensor(one.node.name) for one in whole),
        gathers=tuple(
            NodeDef(name=one.node.name, op="GatherV2", input=[handle_tensor(first), one.ids])
            for one in group
            if one.ids is not None
        ),
    )


def _read_all(graph: ShapedGraph, live: set[str], group: Sequence[_Concat]) -> bool:
    """Whether nothing but these concatenations reads the parts."""
    known = frozenset(name for one in group for name in one.nodes)
    nodes = {part.node for one in group for part in one.parts}
    return all(reader in known for node in nodes for reader in _readers(graph, live, tensor(node)))


def _readers(graph: ShapedGraph, live: set[str], name: str) -> Iterator[str]:
    for node, _ in graph.consumers(name):
        if node.name not in live:
            continue
        if node.op == "ReadVariableOp":
            yield from _readers(graph, live, tensor(node.name))
        else:
            yield node.name
    if any(passed in graph.outputs for passed in graph.passed_on(name)):
        yield name


def _concat(graph: ShapedGraph, node: NodeDef, variables: Mapping[str, Variable]) -> _Concat | None:
    if node.op != "ConcatV2" or node.name in graph.conditional:
        return None
    *values, axis_name = data_inputs(node)
    axis = graph.constant(axis_name)
    if axis is None or len(values) < 2:
        return None
    return _of_values(graph, node, values, int(axis), variables) or _of_gathers(
        graph, node, values, int(axis), variables
    )


def _of_values(
    graph: ShapedGraph,
    node: NodeDef,
    values: Sequence[str],
    axis: int,
    variables: Mapping[str, Variable],
) -> _Concat | None:
    parts = [_read_variable(graph, value, variables) for value in values]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    at = axis % len(found[0].shape) if found[0].shape else axis
    shape = _whole_shape(found, at)
    if shape is None:
        return None
    return _Concat(node, tuple(found), at, shape, None, frozenset({node.name}))


def _of_gathers(
    graph: ShapedGraph,
    node: NodeDef,
    values: Sequence[str],
    axis: int,
    variables: Mapping[str, Variable],
) -> _Concat | None:
    """Gathers of the same ids from each part of the columns, put together along the last axis."""
    gathers = [graph.node(graph.resolve(value)) for value in values]
    parts = [gathered_variable(graph, gather, variables) for gather in gathers]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or any(len(part.shape or ()) != 2 for part in found):
        return None
    ids = {graph.resolve(data_inputs(gather)[1]) for gather in gathers}
    rank = graph.rank(tensor(gathers[0].name))
    shape = _whole_shape(found, 1)
    if len(ids) != 1 or shape is None or axis not in (-1, None if rank is None else rank - 1):
        return None
    # Rows that are read beside the concatenation are read from one part alone.
    uses = [graph.consumers(tensor(gather.name)) for gather in gathers]
    if any(len(one) != 1 for one in uses):
        return None
    names = frozenset(gather.name for gather in gathers)
    return _Concat(node, tuple(found), 1, shape, ids.pop(), names)


def _read_variable(
    graph: ShapedGraph, value: str, variables: Mapping[str, Variable]
) -> Variable | None:
    source = graph.node(graph.resolve(value))
    if source.op == "ReadVariableOp":
        source = graph.node(graph.resolve(data_inputs(source)[0]))
    return variables.get(source.name)


def _whole_shape(parts: Sequence[Variable], axis: int) -> tuple[int, ...] | None:
    """The shape of what the parts are all slices of, in order along the axis; None if they are not.

    Only a slice of the axis is not whole.
    """
    first = parts[0]
    boxes = [sliced_box(part) for part in parts]
    if any(part.key != first.key or part.dtype != first.dtype for part in parts):
        return None
    shape = tuple(size for size, _, _ in boxes[0] or ())
    if not 0 <= axis < len(shape):
        return None
    start = 0
    for box in boxes:
        if box is None or tuple(size for size, _, _ in box) != shape:
            return None
        beside = [one for number, one in enumerate(box) if number != axis]
        if any((first, count) != (0, size) for size, first, count in beside):
            return None
        if box[axis][1] != start:
            return None
        start += box[axis][2]
    return shape if start == shape[axis] else None
