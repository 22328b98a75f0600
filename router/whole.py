"""Serves a SavedModel as it is, uncut, of either format, from one session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorflow.core.framework import tensor_shape_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

from shardserve.batching.errors import DataLoss
from shardserve.batching.stage import StageCounts
from shardserve.router.brief import functions_by_shapes
from shardserve.router.once import OnceCache
from shardserve.router.proto_codec import TensorError, decode_tensor
from shardserve.router.saved_model import load_into
from shardserve.router.servable import Array, RequestContext, Signature, TensorInfo
from shardserve.router.session import Parallelism, Stage, StageThreads, TensorFlowRunner
from shardserve.shards.cut.saved_model import INIT_SIGNATURE, served_signatures

logger = logging.getLogger(__name__)

#: The signature a request means that names none.
DEFAULT_SIGNATURE = "serving_default"

#: Compiled (signature, outputs) pairs kept for a model. Clients choose the outputs: it is bounded.
MAX_STAGES = 128

_NOT_SERVED = "signature %r of model %s has a ragged or sparse tensor, and is not served"
_NO_OUTPUT = "output %r of signature %r of model %s is ragged or sparse, and in no reply"

#: A signature, and outputs of it.
_Asked = tuple[str, tuple[str, ...]]


class WholeServable:
    """A `Servable` whose every signature is one stage."""

    def __init__(
        self,
        name: str,
        version: int,
        runner: TensorFlowRunner,
        meta_graph: meta_graph_pb2.MetaGraphDef,
    ) -> None:
        self.name = name
        self.version = version
        self.signatures: Mapping[str, Signature] = signatures_of(meta_graph, name)
        self.signature_def_map = signature_def_map_of(meta_graph)
        self._runner = runner
        runner.functions_by_shapes = functions_by_shapes(meta_graph.graph_def.library.function)
        self._stages: OnceCache[_Asked, Stage] = OnceCache(runner.threads, self._made, MAX_STAGES)

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        stage = await self._stages.get((signature, tuple(outputs)), context)
        values = [inputs[alias] for alias in self.signatures[signature].inputs]
        results = await self._runner.run(stage, values, context)
        return dict(zip(outputs, results, strict=True))

    async def run_unjoined(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """As `run`: nothing is joined here."""
        return await self.run(signature, inputs, outputs, context)

    def stage_of(self, signature: str, inputs: Sequence[str], outputs: Sequence[str]) -> Stage:
        """The stage from these inputs of a signature, by alias, to these outputs."""
        chosen = self.signatures[signature]
        return self._runner.make_callable(
            [chosen.inputs[alias].tensor for alias in inputs],
            [chosen.outputs[alias].tensor for alias in outputs],
        )

    def stage_counts(self) -> dict[str, StageCounts]:
        """See `Servable.stage_counts`: nothing is batched here."""
        return {}

    async def close(self) -> None:
        """See `Servable.close`."""
        await self._stages.close()
        await asyncio.to_thread(self._runner.close)

    def prepare(self, signature: str) -> None:
        """Compile a signature with all its outputs now, so that no request has to wait for it."""
        self._stages.prepare((signature, tuple(self.signatures[signature].outputs)))

    def _made(self, asked: _Asked) -> Stage:
        signature, outputs = asked
        return self.stage_of(signature, tuple(self.signatures[signature].inputs), outputs)


def load_whole(
    name: str,
    version: int,
    directory: Path,
    threads: StageThreads,
    tags: Sequence[str] = ("serve",),
    parallelism: Parallelism = Parallelism(),  # noqa: B008 (frozen)
) -> WholeServable:
    """Load the SavedModel in `directory`, and compile its default signature.

    Blocks for as long as the model's size takes. Raises as `saved_model.load_into` does.
    """
    runner = TensorFlowRunner(threads, parallelism=parallelism)
    try:
        servable = WholeServable(name, version, runner, load_into(runner.session, directory, tags))
        if DEFAULT_SIGNATURE in servable.signatures:
            servable.prepare(DEFAULT_SIGNATURE)
    except BaseException:
        runner.close()
        raise
    return servable


def signatures_of(meta_graph: meta_graph_pb2.MetaGraphDef, model: str) -> dict[str, Signature]:
    """The signatures that requests can name; inputs and outputs by alias, in sorted order.

    Logs which of the model's are not served, and which outputs.
    """
    served = served_signatures(meta_graph)
    for name, signature in sorted(meta_graph.signature_def.items()):
        if name not in served and name != INIT_SIGNATURE:
            logger.warning(_NOT_SERVED, name, model)
        elif name in served:
            for alias in sorted(signature.outputs.keys() - served[name].outputs.keys()):
                logger.warning(_NO_OUTPUT, alias, name, model)
    return {
        name: Signature(
            method_name=signature.method_name,
            inputs=_infos(signature.inputs),
            outputs=_infos(signature.outputs),
            defaults={alias: _default(name, alias, p) for alias, p in signature.defaults.items()},
        )
        for name, signature in served.items()
    }


def signature_def_map_of(meta_graph: meta_graph_pb2.MetaGraphDef) -> bytes:
    """All SignatureDefs as a serialised SignatureDefMap, for GetModelMetadata."""
    whole = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in meta_graph.signature_def.items():
        whole.signature_def[name].CopyFrom(signature)
    serialized: bytes = whole.SerializeToString(deterministic=True)
    return serialized


def _infos(infos: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, TensorInfo]:
    return {
        alias: TensorInfo(info.name, info.dtype, _shape(info.tensor_shape))
        for alias, info in sorted(infos.items())
    }


def _shape(proto: tensor_shape_pb2.TensorShapeProto) -> tuple[int, ...] | None:
    return None if proto.unknown_rank else tuple(dim.size for dim in proto.dim)


def _default(signature: str, alias: str, proto: tensor_shape_pb2.TensorShapeProto) -> Array:
    try:
        return decode_tensor(proto)
    except TensorError as error:
        raise DataLoss(f"signature {signature!r}: default of input {alias!r}: {error}") from error
