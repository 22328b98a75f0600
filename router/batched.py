"""Batches whole requests around a servable's run, as TensorFlow Serving's --enable_batching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from shardserve.batching.driver import BatchDevice
from shardserve.batching.likeness import Likeness
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.stage import StageCounts
from shardserve.batching.tensor_stage import TensorBatch, TensorStage
from shardserve.batching.tensors import rows_of
from shardserve.router.batch_context import batch_context
from shardserve.router.servable import Array, RequestContext, Servable, Signature


class BatchedServable:
    """A `Servable` that joins concurrent requests on dimension 0 and runs them as one.

    Requests share a batch if they have the signature, the outputs, and the inputs' dtypes and
    shapes beyond dimension 0 in common (with `pad_variable_length_inputs`, their ranks). Every
    input and output must have the batch's rows as dimension 0. A batch runs until the latest
    deadline of its requests, each of which ends at its own. The time that a batch spends on its
    stages is spent on each of its requests. A request that is alone in its batch runs as it is.
    All requests come from one event loop. Without a `device` it has one of its own, with
    the parameters' `slots`.
    """

    def __init__(
        self,
        servable: Servable,
        parameters: BatchingParameters,
        device: BatchDevice | None = None,
    ) -> None:
        self.name = servable.name
        self.version = servable.version
        self.signatures: Mapping[str, Signature] = servable.signatures
        self.signature_def_map = servable.signature_def_map
        self._servable = servable
        self._stage = TensorStage(
            device or BatchDevice(parameters.slots),
            parameters.thread_pool_name,
            parameters,
            self._run_batch,
            lambda group: cast(_Group, group).outputs,
        )

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """See `Servable.run`.

        Besides, InvalidArgument for inputs that do not agree in dimension 0, FailedPrecondition
        for outputs without it, Unavailable when the queue is full, ResourceExhausted for a request
        whose time ran out in the queue.
        """
        tensors = [inputs[alias] for alias in self.signatures[signature].inputs]
        group = _Group(signature, tuple(sorted(outputs)))
        results = await self._stage(
            tensors,
            rows_of(tensors),
            context.deadline,
            group=group,
            context=_Request(inputs, context),
        )
        return dict(zip(group.outputs, results, strict=True))

    def stage_counts(self) -> dict[str, StageCounts]:
        """See `Servable.stage_counts`; "requests" is the stage of whole requests."""
        return {**self._servable.stage_counts(), f"{self.name}/requests": self._stage.counts()}

    async def drain(self) -> None:
        """Accept no more requests; return when those accepted have been answered."""
        await self._stage.drain()

    async def close(self) -> None:
        """See `Servable.close`."""
        await self.drain()
        await self._servable.close()

    async def _run_batch(self, tensors: list[Array], batch: TensorBatch) -> list[Array]:
        group = cast(_Group, cast(Likeness, batch.key).group)
        first: _Request = batch.tasks[0].context
        if len(batch.tasks) == 1 and batch.padded_size == batch.size and not batch.has_pieces:
            inputs = first.inputs
        else:
            inputs = dict(zip(self.signatures[group.signature].inputs, tensors, strict=True))
        with batch_context(batch, lambda request: cast(_Request, request).context) as context:
            outputs = await self._servable.run(group.signature, inputs, group.outputs, context)
        return [outputs[alias] for alias in group.outputs]


class _Group(NamedTuple):
    """What requests of one batch have in common, besides what their tensors look like."""

    signature: str
    outputs: tuple[str, ...]


class _Request(NamedTuple):
    inputs: Mapping[str, Array]
    context: RequestContext
