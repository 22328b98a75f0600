"""Tables that a graph keeps in several variables: N gathers, stitched together, are one gather.

`embedding_lookup` over N variables (a list, or TensorFlow 1's partitioned variable) sends each id
to one of them (DynamicPartition), gathers N times, and puts the rows back in the ids' order
(ParallelDynamicStitch). Once the arithmetic on the ids is known to be that of a `Strategy`, the N
variables are one table, whatever its layout was in the graph.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.shards.cut.graph import GATHERS, data_inputs, tensor
from shardserve.shards.cut.shapes import ShapedGraph
from shardserve.shards.cut.stored import StoredRows, stored_rows
from shardserve.shards.cut.variables import Identity, Variable

_STITCHES = frozenset({"ParallelDynamicStitch", "DynamicStitch"})
_SELECTS = frozenset({"Select", "SelectV2"})
_FOLDED: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b,
    "AddV2": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "FloorDiv": lambda a, b: a // b,
    "FloorMod": lambda a, b: a % b,
}
_ARITHMETIC = frozenset({*_FOLDED, *_SELECTS, "Maximum", "Less"})
#: The deepest of the expressions below, a cast or two on the way.
_MAX_DEPTH = 8

#: An int, the leaf, another tensor's name, or (op, operands ...).
Expression = Any
_IDS = "ids"


class Strategy(enum.StrEnum):
    """How ids fall to N variables of `total` rows in all; the first total % N have one more.

    MOD  id is row id // N of variable id % N
    DIV  each variable has a run of ids
    """

    MOD = "mod"
    DIV = "div"


@dataclass(frozen=True)
class PartitionedTable:
    """Variables that are one table.

    `parts` are in order; `nodes` are all the nodes of them, in whatever signature. Each of
    `gathers` stands for one stitched lookup: a gather of its second input, whose name is the node
    that it replaces.
    """

    name: str
    strategy: Strategy
    parts: tuple[Variable, ...]
    nodes: tuple[str, ...]
    gathers: tuple[NodeDef, ...]

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.shape[0] for part in self.parts if part.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    @property
    def stored(self) -> tuple[StoredRows, ...]:
        """Where the table's rows lie."""
        found, start = [], 0
        for number, part in enumerate(self.parts):
            run = stored_rows(part)
            assert isinstance(run, StoredRows)  # `find_partitioned` has looked.
            if self.strategy is Strategy.MOD:
                run = StoredRows(run.key, run.of, run.first, run.count, number, len(self.parts))
            else:
                run = StoredRows(run.key, run.of, run.first, run.count, start)
            start += run.count
            found.append(run)
        return tuple(found)


@dataclass(frozen=True)
class Found:
    """The partitioned tables of a graph; and why other stitched gathers are none, by variable."""

    tables: tuple[PartitionedTable, ...]
    reasons: Mapping[str, str]


#: Tells, for a variable, the gathers that read it; None where something else reads it too.
Readers = Callable[[Variable], frozenset[str] | None]


def find_partitioned(
    graph: ShapedGraph, live: Iterable[str], variables: Mapping[str, Variable], readers: Readers
) -> Found:
    """Look for stitched gathers among the nodes `live`.

    A variable that is read in any other way as well, or of which two lookups have different
    opinions, is no part of a table. `reasons` says so, by the variable's node.
    """
    reasons: dict[str, str] = {}
    by_parts: dict[tuple[Identity, ...], list[_Stitched]] = defaultdict(list)
    for name in sorted(live):
        node = graph.nodes[name]
        if node.op not in _STITCHES:
            continue
        gathers = _part_gathers(graph, node, variables)
        if gathers is None or len(gathers) < 2:
            continue
        found = _stitched(graph, node, gathers)
        if isinstance(found, str):
            reasons |= {part.node: f"{node.op} {name}: {found}" for part, _ in gathers}
        else:
            by_parts[tuple(part.identity for part in found.parts)].append(found)
    taken = {variable.shared_name for variable in variables.values()}
    tables = []
    for group in by_parts.values():
        problem = _disagreement(group, readers)
        if problem is not None:
            reasons |= {part.node: problem for one in group for part in one.parts}
            continue
        tables.append(_table(group, taken))
        taken.add(tables[-1].name)
    return Found(tuple(tables), reasons)


@dataclass(frozen=True)
class _Stitched:
    """One stitched lookup. `gather` stands for it; `gathered` are the nodes that read a part."""

    gather: NodeDef
    gathered: tuple[str, ...]
    parts: tuple[Variable, ...]
    strategy: Strategy


def _table(group: Sequence[_Stitched], taken: set[str]) -> PartitionedTable:
    nodes = dict.fromkeys(part.node for one in group for part in one.parts)
    return PartitionedTable(
        _name(group[0].parts, taken),
        group[0].strategy,
        group[0].parts,
        tuple(nodes),
        tuple(one.gather for one in group),
    )


def _name(parts: Sequence[Variable], taken: set[str]) -> str:
    """The checkpoint key, if the parts are slices of one; else what their names begin with."""
    if len({part.key for part in parts}) == 1:
        name = parts[0].key_name
    else:
        name = _common_start(parts).rstrip("0123456789_/-")
        name = name.removesuffix("part").rstrip("_/-")
    return parts[0].shared_name if not name or name in taken else name


def _common_start(parts: Sequence[Variable]) -> str:
    first, last = min(p.shared_name for p in parts), max(p.shared_name for p in parts)
    same = (a == b for a, b in zip(first, last, strict=False))
    return first[: sum(takewhile(bool, same))]


def _disagreement(group: Sequence[_Stitched], readers: Readers) -> str | None:
    strategies = {one.strategy for one in group}
    if len(strategies) > 1:
        return f"its lookups partition ids in different ways: {', '.join(sorted(strategies))}"
    gathered = {name for one in group for name in one.gathered}
    for part in {part.node: part for one in group for part in one.parts}.values():
        reading = readers(part)
        if reading is None or not reading <= gathered:
            return f"{part.shared_name} is one of {len(group[0].parts)} parts, and read alone too"
    return None


def _part_gathers(
    graph: ShapedGraph, stitch: NodeDef, variables: Mapping[str, Variable]
) -> list[tuple[Variable, NodeDef]] | None:
    """The gathers that a stitch puts together, in order, and the variable that each reads."""
    found = []
    inputs = data_inputs(stitch)
    for name in inputs[len(inputs) // 2 :]:
        gather = graph.node(graph.resolve(name))
        variable = gathered_variable(graph, gather, variables)
        if variable is None:
            return None
        found.append((variable, gather))
    return found


def gathered_variable(
    graph: ShapedGraph, gather: NodeDef, variables: Mapping[str, Variable]
) -> Variable | None:
    """The variable that a node gathers rows from."""
    if gather.op not in GATHERS or gather.attr["batch_dims"].i:
        return None
    inputs = data_inputs(gather)
    if gather.op == "GatherV2" and graph.constant(inputs[2]) != 0:
        return None
    source = graph.node(graph.resolve(inputs[0]))
    if source.op == "ReadVariableOp":
        source = graph.node(graph.resolve(data_inputs(source)[0]))
    return variables.get(source.name)


def _stitched(
    graph: ShapedGraph, stitch: NodeDef, gathers: Sequence[tuple[Variable, NodeDef]]
) -> _Stitched | str:
    """The lookup that a stitch ends, or why it is none."""
    inputs = data_inputs(stitch)
    places = _partition(graph, inputs[: len(gathers)])
    rows = _partition(graph, [data_inputs(gather)[1] for _, gather in gathers])
    if places is None or rows is None:
        return "what it stitches does not come in order from one DynamicPartition"
    if graph.resolve(data_inputs(places)[1]) != graph.resolve(data_inputs(rows)[1]):
        return "rows and places are partitioned differently"
    parts = [variable for variable, _ in gathers]
    problem = _unlike(parts)
    if problem is not None:
        return problem
    sizes = [part.shape[0] for part in parts if part.shape]
    local, assigned = data_inputs(rows)[:2]
    leaf = _leaf(graph, local)
    strategy = None if leaf is None else _strategy(graph, leaf, assigned, local, sizes)
    if leaf is None or strategy is None:
        return f"no strategy partitions {sum(sizes)} ids over {len(sizes)} parts in this way"
    if sizes != _sizes(sum(sizes), len(sizes)):
        return f"its parts do not have the rows that {strategy.value!r} gives {sum(sizes)} ids"
    if not _counts(graph, data_inputs(places)[0], leaf):
        return "it does not restore the order of the ids"
    gather = _stand_in(graph, stitch, leaf, parts[0])
    return _Stitched(gather, tuple(node.name for _, node in gathers), tuple(parts), strategy)


def _strategy(
    graph: ShapedGraph, ids: str, assigned: str, local: str, sizes: Sequence[int]
) -> Strategy | None:
    """The strategy that computes an id's part and its row there as the graph does."""
    expressions = _Expressions(graph, ids)
    found = expressions.of(assigned), expressions.of(local)
    total, parts = sum(sizes), len(sizes)
    if total < parts:
        return None
    return next((one for one in Strategy if found == _expected(one, total, parts)), None)


def _unlike(parts: Sequence[Variable]) -> str | None:
    """Why the parts cannot be one table, if they cannot."""
    first = parts[0]
    for part in parts:
        run = stored_rows(part)
        if isinstance(run, str):
            return f"{part.shared_name}: {run}"
        if part.dtype != first.dtype or (part.shape or ())[1:] != (first.shape or ())[1:]:
            return f"{part.shared_name} has other rows than {first.shared_name}"
    if len({part.identity for part in parts}) < len(parts):
        return "one variable is several of its parts"
    return None


def _sizes(total: int, parts: int) -> list[int]:
    per, extra = divmod(total, parts)
    return [per + (number < extra) for number in range(parts)]


def _expected(strategy: Strategy, total: int, parts: int) -> tuple[Expression, Expression]:
    """Which part an id falls to, and which row it is there, as the graph computes them."""
    per, extra = divmod(total, parts)
    if strategy is Strategy.MOD:
        return ("FloorMod", _IDS, parts), ("FloorDiv", _IDS, parts)
    rest = ("Sub", _IDS, extra)
    part = ("Maximum", ("FloorDiv", _IDS, per + 1), ("FloorDiv", rest, per))
    row = ("Select", ("Less", part, extra), ("FloorMod", _IDS, per + 1), ("FloorMod", rest, per))
    return part, row


def _partition(graph: ShapedGraph, tensors: Sequence[str]) -> NodeDef | None:
    """The DynamicPartition whose outputs the tensors are, all of them, in order."""
    names = [graph.resolve(name) for name in tensors]
    node = graph.node(names[0])
    if node.op != "DynamicPartition" or node.attr["num_partitions"].i != len(names):
        return None
    return node if names == [f"{node.name}:{slot}" for slot in range(len(names))] else None


def _leaf(graph: ShapedGraph, local: str) -> str | None:
    """The flat ids, read off the place where both strategies have them: a division by the parts."""
    node = graph.node(graph.resolve(local))
    if node.op in _SELECTS:
        node = graph.node(graph.resolve(data_inputs(node)[1]))
    return graph.resolve(data_inputs(node)[0]) if node.op in ("FloorDiv", "FloorMod") else None


def _counts(graph: ShapedGraph, places: str, ids: str) -> bool:
    """Whether `places` is 0, 1, ... for each of the ids."""
    node = graph.node(graph.resolve(places))
    if node.op != "Range":
        return False
    start, limit, step = data_inputs(node)
    if graph.constant(start) != 0 or graph.constant(step) != 1:
        return False
    size = graph.node(graph.resolve(limit))
    if size.op == "Size":
        return graph.resolve(data_inputs(size)[0]) == ids
    # Where the ids' number is known, it is a constant already.
    known = graph.constant(limit)
    return known is not None and graph.shape(ids) == (int(known),)


def _stand_in(graph: ShapedGraph, stitch: NodeDef, ids: str, part: Variable) -> NodeDef:
    """A gather in place of the stitch, or, where its rows only get the ids' shape, of that."""
    shaped = _reshaped(graph, stitch, ids, part)
    name, source = (stitch.name, ids) if shaped is None else shaped
    return NodeDef(name=name, op="GatherV2", input=[tensor(part.node), source])


def _reshaped(
    graph: ShapedGraph, stitch: NodeDef, ids: str, part: Variable
) -> tuple[str, str] | None:
    """(the Reshape, the ids before they were made flat)."""
    flat, uses = graph.node(ids), graph.consumers(tensor(stitch.name))
    if flat.op != "Reshape" or len(uses) != 1 or uses[0][0].op != "Reshape" or uses[0][1]:
        return None
    made = graph.constant(data_inputs(flat)[1])
    if made is None or made.tolist() != [-1]:
        return None
    if any(name in graph.outputs for name in graph.passed_on(tensor(stitch.name))):
        return None
    original = graph.resolve(data_inputs(flat)[0])
    shape = graph.node(graph.resolve(data_inputs(uses[0][0])[1]))
    if shape.op != "ConcatV2" or len(data_inputs(shape)) != 3:
        return None
    head, tail = data_inputs(shape)[:2]
    row = graph.constant(tail)
    is_row = row is not None and tuple(row.reshape(-1).tolist()) == (part.shape or ())[1:]
    return (uses[0][0].name, original) if is_row and _is_shape(graph, head, original) else None


def _is_shape(graph: ShapedGraph, shape: str, of: str) -> bool:
    """Whether a tensor is the shape of another; where that is known, it is a constant already."""
    node = graph.node(graph.resolve(shape))
    if node.op == "Shape":
        return graph.resolve(data_inputs(node)[0]) == of
    known = graph.constant(shape)
    return known is not None and graph.shape(of) == tuple(known.reshape(-1).tolist())


class _Expressions:
    """Arithmetic on ids as nested tuples, constants folded, casts dropped."""

    def __init__(self, graph: ShapedGraph, leaf: str) -> None:
        self._graph = graph
        self._leaf = leaf

    def of(self, tensor_name: str, depth: int = 0) -> Expression:
        """The expression that makes a tensor."""
        name = self._graph.resolve(tensor_name)
        if name == self._leaf:
            return _IDS
        node = self._graph.node(name)
        if node.op == "Cast" and depth < _MAX_DEPTH:
            return self.of(data_inputs(node)[0], depth + 1)
        if node.op == "Const":
            value = self._graph.constant(name)
            return int(value) if value is not None and value.size == 1 else name
        if node.op not in _ARITHMETIC or depth >= _MAX_DEPTH:
            return name
        operands = tuple(self.of(source, depth + 1) for source in data_inputs(node))
        fold = _FOLDED.get(node.op)
        if fold is not None and all(isinstance(value, int) for value in operands):
            divides = node.op in ("FloorDiv", "FloorMod")
            return name if divides and operands[1] == 0 else fold(*operands)
        return ("Select" if node.op in _SELECTS else node.op, *operands)
