"""What operations make of joined requests, one rule for each kind of operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.shards.cut.graph import data_inputs
from shardserve.shards.cut.row_kinds import FIXED, Count, Fixed, Mixed, RowKind, Rows, Sizes
from shardserve.shards.cut.shapes import ShapedGraph


@dataclass(frozen=True)
class Operation:
    """A node, and the kinds of its inputs: none `Mixed`, and not all `Fixed`."""

    graph: ShapedGraph
    node: NodeDef
    kinds: Sequence[RowKind]

    def input(self, slot: int) -> str:
        return data_inputs(self.node)[slot]

    def rank(self, slot: int) -> int | None:
        return self.graph.rank(self.input(slot))

    def shape(self, slot: int) -> tuple[int | None, ...] | None:
        return self.graph.shape(self.input(slot))

    def constant(self, slot: int) -> Any | None:
        """The value of an input that is a constant, as an array."""
        return self.graph.constant(self.input(slot))

    def rows(self, slot: int = 0) -> Rows | None:
        kind = self.kinds[slot]
        return kind if isinstance(kind, Rows) else None

    def number(self, key: str) -> int:
        """An attribute; 0 where the operation has none of that name."""
        attributes = self.node.attr
        return int(attributes[key].i) if key in attributes else 0

    def others_fixed(self, *slots: int) -> bool:
        """Whether all inputs but those are fixed."""
        return all(isinstance(k, Fixed) for n, k in enumerate(self.kinds) if n not in slots)

    def axes(self, slot: int, of: int = 0) -> set[int] | None:
        """The axes that a constant input names, counted from the first of input `of`."""
        named, rank = self.constant(slot), self.rank(of)
        if named is None:
            return None
        flat = [int(axis) for axis in named.reshape(-1)]
        if rank is None:
            return None if any(axis < 0 for axis in flat) else set(flat)
        return {axis % rank for axis in flat}


Rule = Callable[[Operation, str], RowKind | None]


def kind_of_output(operation: Operation, name: str) -> RowKind:
    """The kind of a node's output `name`."""
    rule = _RULES.get(operation.node.op)
    found = None if rule is None else rule(operation, name)
    if found is not None:
        return found
    node = operation.node
    return Mixed(f"{node.op} {node.name} is not known to keep rows apart")


def _same(op: Operation, _: str) -> RowKind | None:
    """Element by element of the first input, or along axes beyond the first by itself."""
    return op.rows() if op.others_fixed(0) else None


def _elementwise(op: Operation, _: str) -> RowKind | None:
    rows = [kind for kind in op.kinds if isinstance(kind, Rows)]
    fixed = [slot for slot, kind in enumerate(op.kinds) if isinstance(kind, Fixed)]
    if len(rows) + len(fixed) < len(op.kinds) or len(set(rows)) != 1:
        return None
    small = [slot for slot in fixed if op.rank(slot) != 0]
    if len(rows) == 1 and not small:
        return rows[0]
    ranks = {op.rank(slot) for slot, kind in enumerate(op.kinds) if isinstance(kind, Rows)}
    rank = ranks.pop()
    if ranks or rank is None or not all(_is_within(op.shape(slot), rank) for slot in small):
        return None
    return rows[0]


def _is_within(shape: tuple[int | None, ...] | None, rank: int) -> bool:
    """Whether a tensor is broadcast along the first of `rank` axes."""
    return shape is not None and (len(shape) < rank or (len(shape) == rank and shape[0] == 1))


def _select(op: Operation, name: str) -> RowKind | None:
    if all(kind == op.kinds[0] and isinstance(kind, Rows) for kind in op.kinds):
        return op.kinds[0]
    return None


def _matmul(op: Operation, _: str) -> RowKind | None:
    attributes = op.node.attr
    return op.rows() if op.others_fixed(0) and not attributes["transpose_a"].b else None


def _batch_matmul(op: Operation, _: str) -> RowKind | None:
    first, second = op.rank(0), op.rank(1)
    if first is None or second is None or max(first, second) < 3:
        return None
    if first == second and op.rows(0) is not None and op.rows(0) == op.rows(1):
        return op.rows(0)
    if first >= 3 and op.rows(0) and isinstance(op.kinds[1], Fixed):
        return op.rows(0) if _is_within(op.shape(1), first) else None
    return None


def _concat(op: Operation, _: str) -> RowKind | None:
    last = len(op.kinds) - 1
    axes = op.axes(last)
    rows = set(op.kinds[:last])
    if axes is None or 0 in axes or len(rows) != 1:
        return None
    return op.rows(0)


def _reduce(op: Operation, _: str) -> RowKind | None:
    axes = op.axes(1)
    return op.rows(0) if axes is not None and 0 not in axes else None


def _beyond_first_axis(slot: int) -> Rule:
    """Along the axis, or the axes, that the input `slot` names."""

    def rule(op: Operation, _: str) -> RowKind | None:
        axes = op.axes(slot)
        return op.rows(0) if op.others_fixed(0) and axes is not None and 0 not in axes else None

    return rule


def _expand_dims(op: Operation, _: str) -> RowKind | None:
    axis, rank = op.constant(1), op.rank(0)
    if axis is None or (int(axis) < 0 and rank is None):
        return None
    place = int(axis) if int(axis) >= 0 else int(axis) + (rank or 0) + 1
    return op.rows(0) if place > 0 else None


def _squeeze(op: Operation, _: str) -> RowKind | None:
    rank, dims = op.rank(0), list(op.node.attr["squeeze_dims"].list.i)
    if not dims or (rank is None and min(dims) < 0):
        return None
    return op.rows(0) if all((d if d >= 0 else d + (rank or 0)) > 0 for d in dims) else None


def _reshape(op: Operation, name: str) -> RowKind | None:
    """To so many lines for each row, however long a line is; or to lines of a known length."""
    rows, kind, wanted = op.rows(0), op.kinds[1], op.constant(1)
    if rows is None:
        return None
    lines = _lines_after(rows, op.shape(0), op.graph.shape(name))
    if isinstance(kind, Sizes):
        return Rows(kind.lines) if lines in (None, kind.lines) else None
    is_open = wanted is not None and wanted.size and int(wanted.reshape(-1)[0]) == -1
    return Rows(lines) if is_open and lines else None


def _lines_after(
    rows: Rows, before: tuple[int | None, ...] | None, after: tuple[int | None, ...] | None
) -> int | None:
    """The lines of each row in the new shape; None where its sizes are not known, 0 for no line."""
    if not before or not after or None in before[1:] or None in after[1:]:
        return None
    size, each = math.prod(_known(before[1:])), math.prod(_known(after[1:]))
    if each == 0 or (rows.lines * size) % each:
        return 0
    return rows.lines * size // each


def _known(sizes: Sequence[int | None]) -> list[int]:
    return [size for size in sizes if size is not None]


def _transpose(op: Operation, _: str) -> RowKind | None:
    order = op.constant(1)
    return op.rows(0) if order is not None and order.size and int(order[0]) == 0 else None


def _gather(op: Operation, _: str) -> RowKind | None:
    """Rows of a fixed matrix, or fixed columns of joined rows, or each row's own."""
    batched = op.number("batch_dims")
    axes = op.axes(2) if len(op.kinds) > 2 else {0}
    if axes is None:
        return None
    if isinstance(op.kinds[0], Fixed) and axes == {0} and batched == 0:
        return op.rows(1)
    if isinstance(op.kinds[1], Fixed) and 0 not in axes and batched == 0:
        return op.rows(0)
    if batched >= 1 and 0 not in axes and op.rows(0) == op.rows(1):
        return op.rows(0)
    return None


def _strided_slice(op: Operation, _: str) -> RowKind | None:
    begin, end, strides = (op.constant(slot) for slot in (1, 2, 3))
    if begin is None or end is None or strides is None or not len(strides):
        return None
    masks = {key: op.number(key) for key in _MASKS}
    if isinstance(op.kinds[0], Sizes) and int(strides[0]) == 1:
        return _size_of(op.kinds[0], int(begin[0]), int(end[0]), masks)
    if masks["ellipsis_mask"] & 1:
        # Whatever else there is comes from the end; with all axes named it would be none.
        rank = op.rank(0)
        return op.rows(0) if rank is not None and len(strides) <= rank else None
    if (masks["new_axis_mask"] | masks["shrink_axis_mask"]) & 1 or int(strides[0]) != 1:
        return None
    from_first = masks["begin_mask"] & 1 or int(begin[0]) == 0
    return op.rows(0) if from_first and masks["end_mask"] & 1 else None


_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")


def _size_of(sizes: Sizes, begin: int, end: int, masks: dict[str, int]) -> RowKind | None:
    """An element of a shape, or some of them."""
    if masks["shrink_axis_mask"] & 1:
        return Count(sizes.lines) if begin == 0 else FIXED if begin > 0 else None
    if begin == 0 or masks["begin_mask"] & 1:
        return sizes if end > 0 or masks["end_mask"] & 1 else None
    return FIXED if begin > 0 else None


def _slice(op: Operation, _: str) -> RowKind | None:
    begin, size = op.constant(1), op.constant(2)
    if begin is None or size is None or not len(begin):
        return None
    return op.rows(0) if int(begin[0]) == 0 and int(size[0]) == -1 else None


def _split(op: Operation, _: str) -> RowKind | None:
    """Of Split the axis is the first input, of SplitV the last."""
    data, axis = (1, 0) if op.node.op == "Split" else (0, 2)
    axes = op.axes(axis, data)
    return op.rows(data) if axes is not None and 0 not in axes else None


def _unpack(op: Operation, _: str) -> RowKind | None:
    axis, rank = op.number("axis"), op.rank(0)
    if axis < 0 and rank is None:
        return None
    return op.rows(0) if (axis if axis >= 0 else axis + (rank or 0)) > 0 else None


def _pack(op: Operation, _: str) -> RowKind | None:
    axis, first = op.number("axis"), op.kinds[0]
    if isinstance(first, Count):
        return Sizes(first.lines) if op.others_fixed(0) else None
    rank = op.rank(0)
    if not isinstance(first, Rows) or any(kind != first for kind in op.kinds):
        return None
    if axis < 0 and rank is None:
        return None
    return first if (axis if axis >= 0 else axis + (rank or 0) + 1) > 0 else None


def _over_last_axis(op: Operation, _: str) -> RowKind | None:
    return op.rows(0) if op.others_fixed(0) and (op.rank(0) or 0) >= 2 else None


def _one_hot(op: Operation, _: str) -> RowKind | None:
    axis = op.number("axis")
    return op.rows(0) if op.others_fixed(0) and (axis == -1 or axis > 0) else None


def _tile(op: Operation, _: str) -> RowKind | None:
    times = op.constant(1)
    return op.rows(0) if times is not None and len(times) and int(times[0]) == 1 else None


def _pad(op: Operation, _: str) -> RowKind | None:
    around = op.constant(1)
    is_kept = around is not None and len(around) and not around[0].any()
    return op.rows(0) if op.others_fixed(0) and is_kept else None


def _find(op: Operation, _: str) -> RowKind | None:
    return op.rows(1) if op.others_fixed(1) else None


def _shape(op: Operation, _: str) -> RowKind | None:
    rows = op.rows(0)
    return None if rows is None else Sizes(rows.lines)


def _filled(op: Operation, _: str) -> RowKind | None:
    slot = 0 if op.node.op == "Fill" else 1
    sizes = op.kinds[slot]
    return Rows(sizes.lines) if isinstance(sizes, Sizes) and op.others_fixed(slot) else None


def _einsum(op: Operation, _: str) -> RowKind | None:
    """The first letter of every joined operand is the result's first, and in no fixed one."""
    sides = op.node.attr["equation"].s.decode().replace(" ", "").split("->")
    operands = sides[0].split(",")
    if len(sides) != 2 or not sides[1] or "." in sides[0]:
        return None
    row, found = sides[1][0], set()
    for letters, kind in zip(operands, op.kinds, strict=True):
        if isinstance(kind, Rows):
            found.add(kind)
            if letters[:1] != row or row in letters[1:]:
                return None
        elif not isinstance(kind, Fixed) or row in letters:
            return None
    return found.pop() if len(found) == 1 else None


def _batch_norm(op: Operation, name: str) -> RowKind | None:
    attributes = op.node.attr
    is_it = name.endswith(":0") and not attributes["is_training"].b
    return op.rows(0) if op.others_fixed(0) and is_it else None


def _ops(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, Rule] = {
    **_ops(
        "Identity StopGradient PreventGradient Snapshot PlaceholderWithDefault EnsureShape Cast "
        "CheckNumerics Abs Neg Sign Exp Expm1 Log Log1p Sqrt Rsqrt Square Reciprocal Inv Sigmoid "
        "Tanh Sin Cos Erf Relu Relu6 Elu Selu LeakyRelu Softplus Softsign Floor Ceil Round Rint "
        "LogicalNot Invert IsNan IsInf IsFinite ZerosLike OnesLike Bucketize AsString StringLower "
        "StringUpper StringStrip StringLength StringToHashBucketFast StringToHashBucketStrong "
        "StringToHashBucket StringToNumber UnicodeTranscode RegexReplace StaticRegexReplace "
        "RegexFullMatch StaticRegexFullMatch EncodeBase64 DecodeBase64 Conv2D "
        "DepthwiseConv2dNative MaxPool AvgPool",
        _same,
    ),
    **_ops(
        "Add AddV2 AddN Sub Mul RealDiv Div DivNoNan MulNoNan FloorDiv FloorMod Mod TruncateDiv "
        "TruncateMod Maximum Minimum Pow SquaredDifference Xlogy Atan2 Equal NotEqual Less "
        "LessEqual Greater GreaterEqual LogicalAnd LogicalOr BitwiseAnd BitwiseOr BitwiseXor "
        "LeftShift RightShift SelectV2 StringJoin Substr BiasAdd ClipByValue",
        _elementwise,
    ),
    **_ops("Select", _select),
    **_ops("MatMul", _matmul),
    **_ops("BatchMatMul BatchMatMulV2 BatchMatMulV3", _batch_matmul),
    **_ops("ConcatV2", _concat),
    **_ops("Sum Mean Max Min Prod All Any ArgMax ArgMin EuclideanNorm ReduceJoin", _reduce),
    **_ops("Cumsum Cumprod ReverseV2", _beyond_first_axis(1)),
    **_ops("ExpandDims", _expand_dims),
    **_ops("Squeeze", _squeeze),
    **_ops("Reshape", _reshape),
    **_ops("Transpose", _transpose),
    **_ops("Gather GatherV2 ResourceGather", _gather),
    **_ops("StridedSlice", _strided_slice),
    **_ops("Slice", _slice),
    **_ops("Split SplitV", _split),
    **_ops("Unpack", _unpack),
    **_ops("Pack", _pack),
    **_ops("Softmax LogSoftmax TopK TopKV2", _over_last_axis),
    **_ops("OneHot", _one_hot),
    **_ops("Tile", _tile),
    **_ops("Pad PadV2 MirrorPad", _pad),
    **_ops("LookupTableFind LookupTableFindV2", _find),
    **_ops("Shape", _shape),
    **_ops("Fill BroadcastTo", _filled),
    **_ops("Einsum", _einsum),
    **_ops("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3", _batch_norm),
}
