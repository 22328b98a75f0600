"""Which checkpoint key each variable of a graph restores from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensorflow.python.framework import dtypes

from shardserve.shards.cut.graph import Graph, data_inputs, split, tensor

_HANDLES = frozenset({"VarHandleOp"})
_REFS = frozenset({"VariableV2", "Variable"})
_ASSIGNS = frozenset({"AssignVariableOp", "Assign"})
_KEY_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True)
class Variable:
    """A variable node. Several nodes may restore from one `key`; those are one variable.

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
    found = {}
    for name in graph.ancestors([split(restore_op)[0]]):
        node = graph.nodes[name]
        if node.op in _ASSIGNS:
            variable = _assigned(graph, data_inputs(node))
            if variable is not None:
                found[variable.node] = variable
    return found


def _assigned(graph: Graph, inputs: list[str]) -> Variable | None:
    target, value = graph.node(graph.resolve(inputs[0])), graph.resolve(inputs[1])
    restore, slot = graph.node(value), split(value)[1]
    if target.op not in _HANDLES | _REFS or restore.op != "RestoreV2":
        return None
    _, names, specs = data_inputs(restore)
    keys, slices = graph.constant(names), graph.constant(specs)
    if keys is None or slices is None:
        return None
    shape = target.attr["shape"].shape
    known = not shape.unknown_rank and all(dim.size >= 0 for dim in shape.dim)
    return Variable(
        node=target.name,
        shared_name=target.attr["shared_name"].s.decode() or target.name,
        key=keys[slot].decode(),
        slice_spec=slices[slot].decode(),
        dtype=dtypes.as_dtype(target.attr["dtype"].type).name,
        shape=tuple(dim.size for dim in shape.dim) if known else None,
        is_ref=target.op in _REFS,
    )


def named_by_key(variables: Mapping[str, Variable]) -> dict[str, str]:
    """Checkpoint key -> the name that users see: the variable's own name where it is unique.

    Where two keys' variables have one name, both are called by their keys. Of the names of one
    key's nodes the shortest counts, the first of equals.
    """
    names: dict[str, str] = {}
    for variable in sorted(variables.values(), key=lambda v: (len(v.shared_name), v.shared_name)):
        names.setdefault(variable.key, variable.shared_name)
    used = list(names.values())
    by_key = {v.key: v.key_name for v in variables.values()}
    return {key: name if used.count(name) == 1 else by_key[key] for key, name in names.items()}


def handle_tensor(variable: Variable) -> str:
    """The tensor that is the variable's handle (or reference)."""
    return tensor(variable.node)
