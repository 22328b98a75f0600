"""Makes a session's graph of a cut model, and gives its variables their values."""

from __future__ import annotations

import tensorflow as tf

from shardserve.batching.errors import FailedPrecondition, error_of
from shardserve.batching.memory import collections_paused
from shardserve.router.session import TensorFlowRunner
from shardserve.shards.cut.cut import CutModel
from shardserve.shards.cut.saved_model import checkpoint_prefix


@collections_paused()
def graph_of(cut: CutModel) -> tf.Graph:
    """The graph that the cut left."""
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(cut.graph_def, name="")
    return graph


def initialise(runner: TensorFlowRunner, cut: CutModel) -> None:
    """Restore the variables that stayed whole, straight from the checkpoint; then the init op."""
    try:
        with runner.graph.as_default():
            assigned = _assign_ops(runner.graph, cut)
        for operation in assigned:
            runner.session.run(operation)
        if cut.inlined.init_op is not None:
            runner.session.run(cut.inlined.init_op, feed_dict=dict(cut.inlined.assets))
    except tf.errors.OpError as error:
        # What follows the first line is where TensorFlow's Python made the node.
        reason = error.message.partition("\n")[0]
        raise error_of(error.error_code, f"{cut.inlined.directory}: {reason}") from None


def _assign_ops(graph: tf.Graph, cut: CutModel) -> list[tf.Operation]:
    if not cut.variables:
        return []
    prefix = checkpoint_prefix(cut.inlined.directory)
    if not prefix.with_name(prefix.name + ".index").exists():
        raise FailedPrecondition(f"{prefix}.index: no such file; the model has variables")
    values = tf.raw_ops.RestoreV2(
        prefix=str(prefix),
        tensor_names=[v.key for v in cut.variables],
        shape_and_slices=[v.slice_spec for v in cut.variables],
        dtypes=[tf.dtypes.as_dtype(v.dtype) for v in cut.variables],
    )
    operations = []
    for variable, value in zip(cut.variables, values, strict=True):
        target = graph.get_tensor_by_name(f"{variable.node}:0")
        if variable.is_ref:
            operations.append(tf.raw_ops.Assign(ref=target, value=value).op)
        else:
            operations.append(tf.raw_ops.AssignVariableOp(resource=target, value=value))
    return [tf.group(*operations)]
