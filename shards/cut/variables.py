"""Which checkpoint key each variable of a graph restores from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import dtypes

from shardserve.shards.cut.graph import Graph, data_inputs, split, tensor

_HANDLES = frozenset({"VarHandleOp"})
_REFS = frozenset({"VariableV2", "Variable"})
_ASSIGNS = frozenset({"AssignVariableOp", "Assign"})
_KEY_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"

#: A checkpoint key, and RestoreV2's word for a slice of it.
Identity = tuple[str, str]


@dataclass(frozen=True)
class Variable:
    """A variable node. Several nodes may restore the same; those are one variable.

    `slice_spec` is RestoreV2's shape-and-slice word, empty for a whole tensor. `shape` is None
    where the graph does not say it.
    """

    node: str
    shared_name: str
    key: str
    slice_spec: str
    dtype: str
    shape: tuple[int, ...] | None
    is_ref: bool

    @property
    def identity(self) -> Identity:
        """What is restored: nodes of one identity have one value."""
        return self.key, self.slice_spec

    @property
    def nbytes(self) -> int:
        """Bytes of the value; 0 where the shape is unknown."""
        if self.shape is None or self.dtype in ("string", "variant", "resource"):
            return 0
        count = 1
        for size in self.shape:
            count *= size
        return count * int(dtypes.as_dtype(self.dtype).size)

    @property
    def key_name(self) -> str:
        """The checkpoint key without TensorFlow's suffix."""
        return self.key.removesuffix(_KEY_SUFFIX)


def restored_variables(graph: Graph, restore_op: str | None) -> dict[str, Variable]:
    """Each variable that the restore op assigns, by node name."""
    if restore_op is None:
        return {}
    restores = _Restores(graph)
    found = {}
    for name in graph.ancestors([split(restore_op)[0]]):
        node = graph.nodes[name]
        if node.op in _ASSIGNS:
            variable = _assigned(graph, restores, data_inputs(node))
            if variable is not None:
                found[variable.node] = variable
    return dict(sorted(found.items()))


class _Restores:
    """What each RestoreV2 restores: one holds the words for all variables of a model."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._words: dict[str, list[tuple[str, str]]] = {}

    def words(self, node: NodeDef) -> list[tuple[str, str]]:
        """(checkpoint key, slice) by slot; nothing where the graph computes them."""
        if node.name not in self._words:
            _, names, specs = data_inputs(node)
            keys, slices = self._graph.constant(names), self._graph.constant(specs)
            pairs = () if keys is None or slices is None else zip(keys, slices, strict=True)
            self._words[node.name] = [(key.decode(), spec.decode()) for key, spec in pairs]
        return self._words[node.name]


def _assigned(graph: Graph, restores: _Restores, inputs: list[str]) -> Variable | None:
    target, value = graph.node(graph.resolve(inputs[0])), graph.resolve(inputs[1])
    restore, slot = graph.node(value), split(value)[1]
    if target.op not in _HANDLES | _REFS or restore.op != "RestoreV2":
        return None
    words = restores.words(restore)
    if not words:
        return None
    key, slice_spec = words[slot]
    shape = target.attr["shape"].shape
    known = not shape.unknown_rank and all(dim.size >= 0 for dim in shape.dim)
    return Variable(
        node=target.name,
        shared_name=target.attr["shared_name"].s.decode() or target.name,
        key=key,
        slice_spec=slice_spec,
        dtype=dtypes.as_dtype(target.attr["dtype"].type).name,
        shape=tuple(dim.size for dim in shape.dim) if known else None,
        is_ref=target.op in _REFS,
    )


def named(variables: Iterable[Variable]) -> dict[Identity, str]:
    """The name that users see of each value that is restored: the variable's own, if it is unique.

    Where several values' variables have one name, each is called by its checkpoint key. Of the
    names of one value's nodes the shortest counts, the first of equals.
    """
    names: dict[Identity, str] = {}
    keys: dict[Identity, str] = {}
    for variable in sorted(variables, key=lambda v: (len(v.shared_name), v.shared_name)):
        names.setdefault(variable.identity, variable.shared_name)
        keys.setdefault(variable.identity, variable.key_name)
    used = Counter(names.values())
    return {
        identity: name if used[name] == 1 else " ".join(filter(None, (keys[identity], identity[1])))
        for identity, name in names.items()
    }


def handle_tensor(variable: Variable) -> str:
    """The tensor that is the variable's handle (or reference)."""
    return tensor(variable.node)
