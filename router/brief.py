"""Which stages take a time that runs with the same shapes foretell (`run_times`), and so may run on
the event loop: no request makes it wait, whatever values it sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.shards.cut.bodies import COMPILED, functions_of

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})

#: No loops, nothing that waits, and nothing that sizes its output by the values of an input.
_BY_SHAPES = frozenset(
    """
    Identity IdentityN StopGradient PreventGradient Snapshot NoOp Const Placeholder PlaceholderV2
    PlaceholderWithDefault VarHandleOp ReadVariableOp Variable VariableV2 DisableCopyOnRead
    HashTable HashTableV2 LookupTableFind LookupTableFindV2 Gather GatherV2 GatherNd ResourceGather
    Reshape ExpandDims Squeeze Pack Unpack Concat ConcatV2 Split SplitV Slice StridedSlice
    Transpose Shape ShapeN Size Rank Cast Bitcast ZerosLike OnesLike Select SelectV2 ClipByValue
    Add AddV2 AddN Sub Mul Div DivNoNan RealDiv TruncateDiv FloorDiv FloorMod Mod Maximum Minimum
    Neg Abs Sign Reciprocal Square Sqrt Rsqrt SquaredDifference Exp Expm1 Log Log1p Pow Erf Round
    Rint Floor Ceil Sin Cos Tanh Sigmoid Softplus Softsign Relu Relu6 LeakyRelu Elu Selu Softmax
    LogSoftmax L2Loss BiasAdd MatMul BatchMatMul BatchMatMulV2 Einsum FusedBatchNormV3
    Sum Mean Prod Max Min All Any ArgMax ArgMin Cumsum
    Equal NotEqual Less LessEqual Greater GreaterEqual LogicalAnd LogicalOr LogicalNot
    """.split()  # noqa: SIM905 (a table to read)
)


def run_on_caller(devices: Iterable[str]) -> bool:
    """Whether operations on devices of these types take their time of the thread that calls.

    Those of a GPU are begun by it, and take theirs later.
    """
    return set(devices) <= {"CPU"}


def takes_time_by_shapes(
    graph: tf.Graph,
    functions: Set[str],
    feeds: Iterable[str],
    fetches: Iterable[str],
    targets: Iterable[str],
) -> bool:
    """Whether the time of this part of a graph depends on nothing but the shapes of its feeds.

    `functions` are those of the graph's of which that is known.
    """
    fed = set(feeds)
    pending = [graph.get_operation_by_name(name) for name in targets]
    pending += [graph.get_tensor_by_name(name).op for name in fetches if name not in fed]
    seen = set(pending)
    while pending:
        operation = pending.pop()
        if operation.type in _CALLS:
            if not _calls_only(operation.node_def, functions):
                return False
        elif operation.type not in _BY_SHAPES:
            return False
        inputs = [tensor.op for tensor in operation.inputs if tensor.name not in fed]
        needed = {*inputs, *operation.control_inputs} - seen
        seen |= needed
        pending += needed
    return True


def functions_by_shapes(library: Iterable[FunctionDef]) -> Set[str]:
    """The names of the functions whose time depends on nothing but the shapes of their arguments.

    What XLA compiles is none: it takes seconds now and then.
    """
    unknown = {f.signature.name: f for f in library if not _is_compiled(f)}
    found: set[str] = set()
    # Callers after what they call: each round finds those whose calls are all known.
    while added := {name for name, function in unknown.items() if _goes_by_shapes(function, found)}:
        found |= added
        for name in added:
            del unknown[name]
    return found


def _goes_by_shapes(function: FunctionDef, functions: Set[str]) -> bool:
    return all(
        _calls_only(node, functions) if node.op in _CALLS else node.op in _BY_SHAPES
        for node in function.node_def
    )


def _calls_only(call: NodeDef, functions: Set[str]) -> bool:
    return functions >= set(functions_of(call)) and not _is_compiled(call)


def _is_compiled(one: NodeDef | FunctionDef) -> bool:
    return COMPILED in one.attr and bool(one.attr[COMPILED].b)
