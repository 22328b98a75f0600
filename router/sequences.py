"""Serves signatures that are made of steps: all requests' sequences are stepped together."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

from shardserve.batching.driver import BatchDevice, StageCounts
from shardserve.batching.step_driver import StepCounts, TakeSteps
from shardserve.router.proto_codec import encode_tensor
from shardserve.router.sequence_plan import SequencePlan, plan_sequence
from shardserve.router.sequence_requests import outputs_of, request_of
from shardserve.router.servable import Array, RequestContext, Servable, Signature, TensorInfo
from shardserve.router.session import Stage, StageThreads
from shardserve.router.stepped import SteppedRows, on_loop, on_threads
from shardserve.shards.sequences_form import SequenceEntry


class Steppable(Servable, Protocol):
    """A servable that may run a signature as one stage."""

    def stage_of(
        self, signature: str, inputs: Sequence[str], outputs: Sequence[str]
    ) -> Stage | None:
        """The stage from these inputs to these outputs, None where it takes more than one."""
        ...

    async def run_unjoined(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """As `run`, of what is a batch already, and is to wait for no other requests."""
        ...


class SequenceServable:
    """A `Servable` with further signatures, each made of steps of one of `steps`' signatures.

    A request is answered when the last of its own sequences ends, whoever else is being stepped.
    The model's own signatures are answered by `servable`, which may be `steps` with something
    around it. Raises InvalidArgument for an entry that does not fit the model, naming the field.
    """

    def __init__(
        self,
        servable: Servable,
        steps: Steppable,
        entries: Mapping[str, SequenceEntry],
        threads: StageThreads,
        device: BatchDevice | None = None,
    ) -> None:
        self.name = servable.name
        self.version = servable.version
        self._servable = servable
        self._plans = {
            name: plan_sequence(name, entry, steps.signatures) for name, entry in entries.items()
        }
        added = {name: plan.signature for name, plan in self._plans.items()}
        self.signatures: Mapping[str, Signature] = {**servable.signatures, **added}
        self.signature_def_map = with_signatures(servable.signature_def_map, added)
        self._stepped = {
            name: SteppedRows(
                f"{self.name}/{name}",
                plan.parameters,
                plan.form,
                _take(plan, steps, threads),
                device,
            )
            for name, plan in self._plans.items()
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
        plan = self._plans.get(signature)
        if plan is None:
            return await self._servable.run(signature, inputs, outputs, context)
        request = request_of(plan, inputs, await self._before(plan, inputs, context))
        started = time.monotonic()
        try:
            results = await self._stepped[signature].run(
                request.rows,
                request.steps,
                request.likeness,
                context.deadline,
                length_known=not plan.stops,
                nbytes=request.nbytes,
            )
        finally:
            context.spend("dense", time.monotonic() - started)
        return outputs_of(plan, request, results, outputs)

    def step_counts(self) -> dict[str, StepCounts]:
        """What each of the further signatures has done."""
        return {name: stepped.counts() for name, stepped in self._stepped.items()}

    def stage_counts(self) -> dict[str, StageCounts]:
        """See `Servable.stage_counts`."""
        steps = {
            f"{self.name}/sequences/{name}": counts.as_stage()
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

    async def _before(
        self, plan: SequencePlan, inputs: Mapping[str, Array], context: RequestContext
    ) -> dict[str, Array]:
        if plan.before is None:
            return {}
        given = {alias: inputs[alias] for alias in plan.before_inputs}
        return await self._servable.run(plan.before, given, plan.before_outputs, context)


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


def _take(plan: SequencePlan, steps: Steppable, threads: StageThreads) -> TakeSteps:
    aliases = [*plan.inputs, *plan.fixed]
    outputs = list(plan.outputs)
    fixed = list(plan.fixed.values())
    stage = steps.stage_of(plan.step, aliases, outputs)
    if stage is not None:
        one = stage
        return on_threads(threads, lambda values: one(*values, *fixed))
    context = RequestContext(f"{steps.name}/{plan.name}", math.inf)

    async def call(values: list[Array]) -> list[Array]:
        inputs = dict(zip(aliases, [*values, *fixed], strict=True))
        found = await steps.run_unjoined(plan.step, inputs, outputs, replace(context, seconds={}))
        return [found[alias] for alias in outputs]

    return on_loop(call)
