"""Who answers a sequence's requests: this process, step by step, or stage actors."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from shardserve.batching.driver import BatchDevice
from shardserve.batching.step_driver import StepCounts, TakeSteps
from shardserve.router.sequence_plan import SequencePlan
from shardserve.router.sequence_requests import outputs_of, request_of
from shardserve.router.servable import Array, RequestContext, Servable, Signature
from shardserve.router.session import Stage, StageThreads
from shardserve.router.stage_runner import StageRunner
from shardserve.router.stepped import SteppedRows, on_loop, on_threads


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


class SteppedSequence:
    """Steps the sequences of all requests together, in this process.

    The signature that is run before the steps is run by `servable`, the steps by `steps`. A step
    that is one stage takes turns on `device`; what others do for a step may wait for its slots, so
    a step that asks others holds none.
    """

    def __init__(
        self,
        plan: SequencePlan,
        servable: Servable,
        steps: Steppable,
        threads: StageThreads,
        device: BatchDevice | None = None,
    ) -> None:
        self.plan = plan
        self._servable = servable
        name = f"{servable.name}/{plan.name}"
        stage = steps.stage_of(plan.step, _aliases(plan), list(plan.outputs))
        take = _asking(plan, steps) if stage is None else _on_stage(plan, stage, threads)
        turns = None if stage is None else device
        self._stepped = SteppedRows(name, plan.parameters, plan.form, take, turns)

    async def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], context: RequestContext
    ) -> dict[str, Array]:
        """The outputs named, when the last of the request's sequences has ended.

        Raises as `SequenceServable.run` does.
        """
        plan = self.plan
        request = request_of(plan, inputs, await self._before(inputs, context))
        started = time.monotonic()
        try:
            results = await self._stepped.run(
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

    def counts(self) -> StepCounts:
        """What has been done."""
        return self._stepped.counts()

    async def drain(self) -> None:
        """Accept no more sequences; return when all that were accepted have ended."""
        await self._stepped.drain()

    async def _before(
        self, inputs: Mapping[str, Array], context: RequestContext
    ) -> dict[str, Array]:
        plan = self.plan
        if plan.before is None:
            return {}
        given = {alias: inputs[alias] for alias in plan.before_inputs}
        return await self._servable.run(plan.before, given, plan.before_outputs, context)


class RemoteSequence:
    """Sends requests whole to the stage actors that step them, and gets all their outputs.

    Inputs and outputs are in the order of the sequence's `signature`.
    """

    def __init__(self, signature: Signature, actors: StageRunner) -> None:
        self._signature = signature
        self._actors = actors

    async def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], context: RequestContext
    ) -> dict[str, Array]:
        """See `SteppedSequence.run`. Arrays may be read-only."""
        tensors = [inputs[alias] for alias in self._signature.inputs]
        # How many rows it has the actor sees from the tensors, as this process would.
        results = await self._actors.run(tensors, 0, context)
        found = dict(zip(self._signature.outputs, results, strict=True))
        return {alias: found[alias] for alias in outputs}


def _aliases(plan: SequencePlan) -> list[str]:
    return [*plan.inputs, *plan.fixed]


def _on_stage(plan: SequencePlan, stage: Stage, threads: StageThreads) -> TakeSteps:
    fixed = list(plan.fixed.values())
    return on_threads(threads, lambda values: stage(*values, *fixed))


def _asking(plan: SequencePlan, steps: Steppable) -> TakeSteps:
    aliases, outputs, fixed = _aliases(plan), list(plan.outputs), list(plan.fixed.values())
    context = RequestContext(f"{steps.name}/{plan.name}", math.inf)

    async def call(values: list[Array]) -> list[Array]:
        inputs = dict(zip(aliases, [*values, *fixed], strict=True))
        found = await steps.run_unjoined(plan.step, inputs, outputs, replace(context, seconds={}))
        return [found[alias] for alias in outputs]

    return on_loop(call)
