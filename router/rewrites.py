"""How much TensorFlow may rewrite a graph (Grappler) before it runs it, by the graph's size.

All that TensorFlow tries by default takes a third of a millisecond for each node of a stage, twice,
and copies the graph for each try: over half a minute for 100,000 nodes, and hundreds of MB.
"""

from __future__ import annotations

from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

#: Nodes above which a graph is large. Below, all rewriting takes some seconds at most.
LARGE_GRAPH = 20_000

#: What a large graph is rewritten by: nodes that do nothing are left out, and products, biases and
#: activations become one kernel. The rest costs a tenth of a request's time if left undone.
_WORTHWHILE = ("pruning", "remap")


def limit_rewrites(config: config_pb2.ConfigProto, nodes: int) -> None:
    """Have a graph of so many nodes rewritten, in place, by what is worth the time for its size.

    What the config says of rewriting itself is left as it is.
    """
    options = config.graph_options
    if nodes <= LARGE_GRAPH or options.HasField("rewrite_options"):
        return
    rewrites = options.rewrite_options
    rewrites.optimizers.extend(_WORTHWHILE)
    rewrites.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    rewrites.disable_tfg_optimizer = True
    rewrites.experimental_conditional_code_motion = rewriter_config_pb2.RewriterConfig.OFF
