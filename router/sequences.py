"""Serves signatures that are made of steps: all requests' sequences are stepped together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

from shardserve.batching.driver import BatchDevice, StageCounts
from shardserve.batching.step_driver import StepCounts
from shardserve.router.proto_codec import encode_tensor
from shardserve.router.sequence_plan import plan_sequence
from shardserve.router.sequence_runners import RemoteSequence, Steppable, SteppedSequence
from shardserve.router.servable import Array, RequestContext, Servable, Signature, TensorInfo
from shardserve.router.session import StageThreads
from shardserve.router.stage_runner import StageRunner
from shardserve.shards.sequences_form import SequenceEntry
from shardserve.shards.stage_groups import stage_of_sequence


class SequenceServable:
    """A `Servable` with further signatures, each made of steps of one of `steps`' signatures.

    A request is answered when the last of its own sequences ends, whoever else is being stepped.
    The model's own signatures are answered by `servable`, which may be `steps` with something
    around it. The sequences that are in `remote`, by their names as stages, are stepped there.
    Raises InvalidArgument for an entry that does not fit the model, naming the field.
    """

    def __init__(
        self,
        servable: Servable,
        steps: Steppable,
        entries: Mapping[str, SequenceEntry],
        threads: StageThreads,
        device: BatchDevice | None = None,
        remote: Mapping[str, StageRunner] = MappingProxyType({}),
    ) -> None:
        self.name = servable.name
        self.version = servable.version
        self._servable = servable
        plans = {
            name: plan_sequence(name, entry, steps.signatures) for name, entry in entries.items()
        }
        added = {name: plan.signature for name, plan in plans.items()}
        self.signatures: Mapping[str, Signature] = {**servable.signatures, **added}
        self.signature_def_map = with_signatures(servable.signature_def_map, added)
        actors = {name: remote.get(stage_of_sequence(name)) for name in plans}
        self._remote = {
            name: RemoteSequence(added[name], one)
            for name, one in actors.items()
            if one is not None
        }
        self._stepped = {
            name: SteppedSequence(plan, servable, steps, threads, device)
            for name, plan in plans.items()
            if name not in self._remote
        }

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """See `Servable.run`.

        For a signature made of steps: InvalidArgument, naming the input, for what does not fit,
        Unavailable when too many sequences wait, ResourceExhausted where time ran out before they
        began. A step that fails for one sequence's values fails only that one's request.
        """
        sequence = self._stepped.get(signature) or self._remote.get(signature)
        if sequence is None:
            return await self._servable.run(signature, inputs, outputs, context)
        return await sequence.run(inputs, outputs, context)

    def step_counts(self) -> dict[str, StepCounts]:
        """What each of the further signatures that are stepped here has done."""
        return {name: stepped.counts() for name, stepped in self._stepped.items()}

    def stage_counts(self) -> dict[str, StageCounts]:
        """See `Servable.stage_counts`."""
        steps = {
            f"{self.name}/{stage_of_sequence(name)}": counts.as_stage()
            for name, counts in self.step_counts().items()
        }
        return {**self._servable.stage_counts(), **steps}

    async def drain(self) -> None:
        """Accept no more sequences; return when all that were accepted have ended."""
        for stepped in self._stepped.values():
            await stepped.drain()

    async def close(self) -> None:
        """See `Servable.close`."""
        await self.drain()
        await self._servable.close()


def with_signatures(signature_def_map: bytes, added: Mapping[str, Signature]) -> bytes:
    """A serialised SignatureDefMap with further signatures."""
    whole = get_model_metadata_pb2.SignatureDefMap.FromString(signature_def_map)
    for name, signature in added.items():
        definition = whole.signature_def[name]
        definition.method_name = signature.method_name
        for alias, info in signature.inputs.items():
            _describe(definition.inputs[alias], info)
        for alias, info in signature.outputs.items():
            _describe(definition.outputs[alias], info)
        for alias, value in signature.defaults.items():
            definition.defaults[alias].ParseFromString(encode_tensor(value))
    serialized: bytes = whole.SerializeToString(deterministic=True)
    return serialized


def _describe(proto: meta_graph_pb2.TensorInfo, info: TensorInfo) -> None:
    proto.name = info.tensor
    proto.dtype = info.dtype
    if info.shape is None:
        proto.tensor_shape.unknown_rank = True
        return
    for size in info.shape:
        proto.tensor_shape.dim.add(size=size)
