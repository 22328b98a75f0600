"""TensorFlow's ConfigProto from a file and from flags that set parts of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

from shardserve.batching.text_messages import parse_message, read_text


@dataclass(frozen=True)
class SessionConfig:
    """A serialised `tensorflow.ConfigProto`, and the threads in it; 0 where it does not say."""

    serialized: bytes
    intra_op_threads: int
    inter_op_threads: int


def read_session_config(
    path: Path | None, *, gpu_memory: float = 0.0, bfloat16: bool = False
) -> SessionConfig:
    """The file of --tensorflow_session_config_file, and what other flags put into it.

    `gpu_memory` is a share of each GPU's memory; 0 leaves it to the file. Raises NotFound, or
    InvalidArgument with line and column.
    """
    config = config_pb2.ConfigProto()
    if path is not None:
        config = parse_message(read_text(path), config_pb2.ConfigProto, str(path))
    if gpu_memory:
        config.gpu_options.per_process_gpu_memory_fraction = gpu_memory
    if bfloat16:
        rewrites = config.graph_options.rewrite_options
        rewrites.auto_mixed_precision_onednn_bfloat16 = rewriter_config_pb2.RewriterConfig.ON
    return session_config_of(config)


def session_config_of(config: config_pb2.ConfigProto) -> SessionConfig:
    return SessionConfig(
        config.SerializeToString(deterministic=True),
        config.intra_op_parallelism_threads,
        config.inter_op_parallelism_threads,
    )
