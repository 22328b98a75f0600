"""Which functions do the same: TensorFlow gives each trace of one a name of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from tensorflow.core.framework.function_pb2 import FunctionDef

from shardserve.shards.cut.graph import function_attributes


def function_digest(library: Mapping[str, FunctionDef], name: str) -> bytes:
    """Equal for functions of equal nodes, whatever they and those they run are called.

    A function that runs itself is like no other.
    """
    return _digest(library, name, ())


def _digest(library: Mapping[str, FunctionDef], name: str, within: tuple[str, ...]) -> bytes:
    if name in within or name not in library:
        return name.encode()
    body = FunctionDef()
    body.CopyFrom(library[name])
    body.signature.name = ""
    body.attr.clear()
    body.arg_attr.clear()
    body.resource_arg_unique_id.clear()
    for node in body.node_def:
        # What was known of shapes where it was traced does not change what it does.
        node.attr.pop("_output_shapes", None)
        if node.op in library:
            node.op = _digest(library, node.op, (*within, name)).hex()
        for key in function_attributes(node.op):
            value = node.attr[key]
            for run in (value.func, *value.list.func) if value.WhichOneof("value") else ():
                if run.name:
                    run.name = _digest(library, run.name, (*within, name)).hex()
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()
