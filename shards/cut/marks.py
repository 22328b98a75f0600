"""Regions that a model marks: Batch and Unbatch nodes that belong together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensorflow.core.framework import graph_pb2
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import (
    BatchingParameters,
    BatchPaddingPolicy,
    MixedPriorityPolicy,
)
from shardserve.shards.cut.function_digest import function_digest
from shardserve.shards.cut.graph import Graph, control_inputs, data_inputs, split

#: On a Batch node that was a BatchFunction's: its name, its function's digest, what that captured.
NAME, FUNCTION, CAPTURED = "_region", "_function", "_captured"
#: BatchFunction's attributes that Batch does not have, kept under a name with "_" before it.
_NUMBERS = (
    "max_batch_size",
    "batch_timeout_micros",
    "max_enqueued_batches",
    "num_batch_threads",
    "low_priority_max_batch_size",
    "low_priority_batch_timeout_micros",
    "low_priority_max_enqueued_batches",
)
_LISTS = ("allowed_batch_sizes", "low_priority_allowed_batch_sizes")
_BATCH_ATTRIBUTES = frozenset(
    {
        "num_batch_threads",
        "max_batch_size",
        "max_enqueued_batches",
        "batch_timeout_micros",
        "allowed_batch_sizes",
        "container",
        "shared_name",
        "batching_queue",
    }
)


@dataclass(frozen=True)
class MarkedRegion:
    """What is between a Batch and its Unbatch nodes.

    `inputs` are the tensors that Batch made, by now its inputs passed on; `outputs` those of the
    Unbatch nodes, in their order. Regions of one `likeness` that is not None do the same.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...]
    batching: BatchingParameters
    likeness: Hashable


def copy_attributes(
    batch_function: NodeDef,
    batch: NodeDef,
    captured: Sequence[str],
    library: Mapping[str, FunctionDef],
) -> None:
    """Give the Batch node that takes a BatchFunction's place what that one's attributes say."""
    for key, value in batch_function.attr.items():
        if key in _BATCH_ATTRIBUTES:
            batch.attr[key].CopyFrom(value)
        elif key not in ("f", "Tin", "Tout", "Tcaptured"):
            batch.attr[f"_{key.lstrip('_')}"].CopyFrom(value)
    batch.attr["grad_timeout_micros"].i = 0
    batch.attr["T"].list.type.extend(batch_function.attr["Tin"].list.type)
    batch.attr[FUNCTION].s = function_digest(library, batch_function.attr["f"].func.name)
    batch.attr[CAPTURED].list.s.extend(name.encode() for name in captured)


def lift_marked(graph_def: graph_pb2.GraphDef) -> tuple[MarkedRegion, ...]:
    """Take the Batch and Unbatch nodes that belong together out, in place; what they enclosed.

    Left as they are, for TensorFlow to batch by itself: a Batch whose index goes to anything but
    Unbatch nodes, and one inside of a loop or a branch. Raises InvalidArgument naming the node for
    attributes that make no sense.
    """
    if not any(node.op == "Batch" for node in graph_def.node):
        return ()
    graph = Graph(graph_def)
    found = []
    for node in [node for node in graph_def.node if node.op == "Batch"]:
        unbatches = _unbatches(graph, node)
        if unbatches is not None and node.name not in graph.conditional:
            found.append(_marked(graph, node, unbatches))
    for region, node, unbatches in found:
        _pass_on(node, unbatches)
        assert region.inputs
    return tuple(region for region, _, _ in found)


def batched_by_tensorflow(graph_def: graph_pb2.GraphDef) -> tuple[str, ...]:
    """The nodes that TensorFlow batches by itself, in the graph and in the functions it runs."""
    functions = [node for f in graph_def.library.function for node in f.node_def]
    nodes: Iterable[NodeDef] = [*graph_def.node, *functions]
    return tuple(node.name for node in nodes if node.op in ("Batch", "BatchFunction"))


def _unbatches(graph: Graph, batch: NodeDef) -> list[NodeDef] | None:
    """The Unbatch nodes of a Batch, in the order of their names; None where others read its index.

    None, too, for one of whom there is none.
    """
    count = len(data_inputs(batch))
    index, number = f"{batch.name}:{count}", f"{batch.name}:{count + 1}"
    readers = {node.name: node for t in (index, number) for node, _ in graph.consumers(t)}
    for node in readers.values():
        sources = [graph.resolve(source) for source in data_inputs(node)]
        if node.op != "Unbatch" or sources[1:] != [index, number]:
            return None
    return sorted(readers.values(), key=_place) or None


def _place(unbatch: NodeDef) -> tuple[int, str]:
    """A function's outputs are in the order of their numbers."""
    digits = unbatch.name.rpartition("_")[2]
    return (int(digits) if digits.isdecimal() else 0, unbatch.name)


def _marked(
    graph: Graph, batch: NodeDef, unbatches: list[NodeDef]
) -> tuple[MarkedRegion, NodeDef, list[NodeDef]]:
    name = batch.attr[NAME].s.decode() if NAME in batch.attr else batch.name
    captured = [graph.resolve(c.decode()) for c in batch.attr[CAPTURED].list.s]
    region = MarkedRegion(
        name=name,
        inputs=tuple(f"{batch.name}:{slot}" for slot in range(len(data_inputs(batch)))),
        outputs=tuple(f"{node.name}:0" for node in unbatches),
        captured=tuple(dict.fromkeys(captured)),
        batching=_parameters(name, batch.attr),
        likeness=_likeness(batch, captured),
    )
    return region, batch, unbatches


def _likeness(batch: NodeDef, captured: Sequence[str]) -> Hashable:
    if FUNCTION not in batch.attr:
        return None
    kept = {key: value for key, value in batch.attr.items() if key not in (NAME, CAPTURED)}
    return (tuple(sorted((k, v.SerializeToString()) for k, v in kept.items())), tuple(captured))


def _parameters(name: str, attributes: Mapping[str, Any]) -> BatchingParameters:
    """What the attributes say. Fewer than one thread leaves their number to us."""

    def get(key: str) -> Any:
        return attributes[key if key in attributes else f"_{key}"]

    values: dict[str, Any] = {key: int(get(key).i) for key in _NUMBERS}
    values |= {key: tuple(get(key).list.i) for key in _LISTS}
    if values["num_batch_threads"] < 1:
        del values["num_batch_threads"]
    values["enable_large_batch_splitting"] = bool(get("enable_large_batch_splitting").b)
    if values["enable_large_batch_splitting"] and values["allowed_batch_sizes"]:
        values["max_execution_batch_size"] = values["allowed_batch_sizes"][-1]
    if policy := get("mixed_priority_policy").s.decode():
        values["mixed_priority_policy"] = MixedPriorityPolicy(policy)
    if policy := get("batch_padding_policy").s.decode():
        values["batch_padding_policy"] = _padding(policy)
    try:
        return BatchingParameters(**values)
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error.message}") from None


def _padding(policy: str) -> BatchPaddingPolicy:
    """A policy that is about what a TPU costs pads here."""
    known = {one.value for one in BatchPaddingPolicy}
    return BatchPaddingPolicy(policy) if policy in known else BatchPaddingPolicy.PAD_UP


def _pass_on(batch: NodeDef, unbatches: list[NodeDef]) -> None:
    """The nodes as identities: names of their tensors stay."""
    inputs, controls = data_inputs(batch), control_inputs(batch)
    types = list(batch.attr["T"].list.type)
    _become(batch, "IdentityN", inputs, controls)
    batch.attr["T"].list.type.extend(types)
    for unbatch in unbatches:
        kind = unbatch.attr["T"].type
        _become(unbatch, "Identity", data_inputs(unbatch)[:1], control_inputs(unbatch))
        unbatch.attr["T"].type = kind


def _become(node: NodeDef, op: str, inputs: Sequence[str], controls: Sequence[str]) -> None:
    node.op = op
    node.attr.clear()
    del node.input[:]
    node.input.extend([*inputs, *(f"^{split(name)[0]}" for name in controls)])
