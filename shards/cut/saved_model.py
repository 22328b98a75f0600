"""Reads a SavedModel's graph and inlines its functions, without reading a variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2

from shardserve.batching.errors import DataLoss, InvalidArgument, NotFound
from shardserve.shards.cut.inlining import NotInlinable, inlined, read_parts
from shardserve.shards.cut.marks import MarkedRegion, lift_marked
from shardserve.shards.cut.ops import check_no_python, check_ops, fill_in_defaults
from shardserve.shards.cut.rewrite import drop_idle_controls
from shardserve.shards.graph_file import graph_file

INIT_SIGNATURE = "__saved_model_init_op"


@dataclass(frozen=True)
class InlinedModel:
    """One MetaGraph without its graph, and what has to be run when it is loaded.

    `restore_op` names the op that assigns all variables from a checkpoint. `init_op` is run once
    after that, with `assets` (tensor -> path) fed. The saver's tensors tell checkpoint keys.
    `marked` are the regions that Batch and Unbatch nodes, or a BatchFunction, enclosed.
    """

    directory: Path
    meta_graph: meta_graph_pb2.MetaGraphDef
    restore_op: str | None
    init_op: str | None
    assets: Mapping[str, str]
    marked: tuple[MarkedRegion, ...] = ()

    @property
    def signatures(self) -> dict[str, meta_graph_pb2.SignatureDef]:
        """The signatures that a client may name."""
        return served_signatures(self.meta_graph)


def served_signatures(
    meta_graph: meta_graph_pb2.MetaGraphDef,
) -> dict[str, meta_graph_pb2.SignatureDef]:
    """The signatures that a client may name, with the outputs that it may: plain tensors.

    A RaggedTensor or a SparseTensor is several tensors under one alias, which no request can send
    and no reply can hold. A signature that takes one, or has no other output, is not served.
    """
    plain = {
        name: _of_plain_tensors(signature)
        for name, signature in meta_graph.signature_def.items()
        if name != INIT_SIGNATURE
    }
    return {name: signature for name, signature in plain.items() if signature is not None}


def _of_plain_tensors(
    signature: meta_graph_pb2.SignatureDef,
) -> meta_graph_pb2.SignatureDef | None:
    if not all(info.name for info in signature.inputs.values()):
        return None
    without_name = [alias for alias, info in signature.outputs.items() if not info.name]
    if not without_name:
        return signature
    if len(without_name) == len(signature.outputs):
        return None
    plain = meta_graph_pb2.SignatureDef()
    plain.CopyFrom(signature)
    for alias in without_name:
        del plain.outputs[alias]
    return plain


def read_meta_graph(
    directory: Path, tags: Sequence[str] = ("serve",)
) -> meta_graph_pb2.MetaGraphDef:
    """The MetaGraph with exactly these tags.

    Raises NotFound where there is no `saved_model.pb` (nor `.pbtxt`), DataLoss where it cannot be
    parsed, and InvalidArgument where no MetaGraph has the tags; each names the file.
    """
    path = graph_file(directory)
    model = _parsed(path)
    for meta_graph in model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == set(tags):
            return meta_graph
    found = [sorted(m.meta_info_def.tags) for m in model.meta_graphs]
    if not found:
        raise DataLoss(f"{path}: holds no MetaGraph; the file is empty or cut off")
    raise InvalidArgument(f"{path}: no MetaGraph with tags {sorted(tags)}; it has {found}")


def _parsed(path: Path) -> saved_model_pb2.SavedModel:
    model = saved_model_pb2.SavedModel()
    try:
        if path.suffix == ".pbtxt":
            text_format.Parse(path.read_text("utf-8"), model)
        else:
            model.ParseFromString(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file; a SavedModel has one") from None
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise DataLoss(f"{path}: not a SavedModel, or cut off: {error}") from None
    return model


def checkpoint_prefix(directory: Path) -> Path:
    """The prefix of a SavedModel's checkpoint files."""
    return directory / "variables" / "variables"


def inline(
    directory: Path, tags: Sequence[str] = ("serve",)
) -> tuple[InlinedModel, graph_pb2.GraphDef]:
    """Parse, then inline the calls of every signature, the init op and the restore op.

    In the graph only While and If still run functions, every attribute is there, and control inputs
    that order nothing with an effect are gone. Raises as `read_meta_graph` does, NotFound for an
    operation that TensorFlow does not have, Unimplemented for one that calls Python, and DataLoss
    for a function that is damaged.
    """
    path = graph_file(directory)
    model, parts = _without_calls(path, read_meta_graph(directory, tags), directory)
    graph_def = read_parts(parts)
    check_no_python(path, graph_def)
    fill_in_defaults(graph_def)
    marked = lift_marked(graph_def)
    drop_idle_controls(graph_def)
    return replace(model, marked=marked), graph_def


def _without_calls(
    path: Path, meta_graph: meta_graph_pb2.MetaGraphDef, directory: Path
) -> tuple[InlinedModel, list[bytes]]:
    """The rest, and the graph as `inlined` gives it; the MetaGraph's own memory can then go."""
    check_ops(path, meta_graph.graph_def)
    restore_op = meta_graph.saver_def.restore_op_name or None
    init_op = _init_op(meta_graph)
    kept = {info.name for s in meta_graph.signature_def.values() for info in _tensors(s)}
    kept.update(op for op in (restore_op, init_op) if op)
    kept.add(meta_graph.saver_def.filename_tensor_name)
    assets = {
        asset.tensor_info.name: str(directory / "assets" / asset.filename)
        for asset in meta_graph.asset_file_def
    }
    kept.update(assets)
    try:
        parts = inlined(meta_graph.graph_def, kept - {""})
    except NotInlinable:
        parts = [_inlined_by_grappler(meta_graph, kept).SerializeToString()]
    except (KeyError, IndexError) as error:
        raise DataLoss(f"{path}: a function refers to {error}, which it does not have") from None
    rest = _without_graph(meta_graph)
    return InlinedModel(directory, rest, restore_op, init_op, assets), parts


def _without_graph(meta_graph: meta_graph_pb2.MetaGraphDef) -> meta_graph_pb2.MetaGraphDef:
    """A copy of the rest: the graph's own memory goes with the original."""
    rest = meta_graph_pb2.MetaGraphDef()
    rest.meta_info_def.tags.extend(meta_graph.meta_info_def.tags)
    for name, signature in meta_graph.signature_def.items():
        rest.signature_def[name].CopyFrom(signature)
    return rest


def _inlined_by_grappler(
    meta_graph: meta_graph_pb2.MetaGraphDef, kept: set[str]
) -> graph_pb2.GraphDef:
    from tensorflow.python.grappler import tf_optimizer  # noqa: PLC0415

    copy = meta_graph_pb2.MetaGraphDef()
    copy.CopyFrom(meta_graph)
    copy.collection_def.clear()
    # Grappler leaves the function that the saver names as it is.
    copy.ClearField("saver_def")
    copy.collection_def["train_op"].node_list.value.extend(sorted(kept - {""}))
    config = config_pb2.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.optimizers.append("function")
    rewrites.min_graph_nodes = -1
    rewrites.meta_optimizer_iterations = rewrites.ONE
    return tf_optimizer.OptimizeGraph(config, copy)


def _tensors(signature: meta_graph_pb2.SignatureDef) -> list[meta_graph_pb2.TensorInfo]:
    return [*signature.inputs.values(), *signature.outputs.values()]


def _init_op(meta_graph: meta_graph_pb2.MetaGraphDef) -> str | None:
    signature = meta_graph.signature_def.get(INIT_SIGNATURE)
    if signature is not None:
        return str(signature.outputs[INIT_SIGNATURE].name)
    for key in ("saved_model_main_op", "legacy_init_op"):
        names = (
            meta_graph.collection_def[key].node_list.value
            if key in meta_graph.collection_def
            else ()
        )
        if names:
            return str(names[0])
    return None
