"""Batches whole requests around a servable's run, as TensorFlow Serving's --enable_batching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardserve.batching.driver import BatchDevice
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.tasks import Batch
from shardserve.batching.tensor_stage import TensorStage
from shardserve.batching.tensors import rows_of
from shardserve.router.batch_context import batch_context
from shardserve.router.servable import Array, RequestContext, Servable, Signature

#: Sets of a signature and outputs that have a queue. Clients choose the outputs: it is bounded.
MAX_QUEUES = 64

#: A signature, and outputs by alias.
_Set = tuple[str, tuple[str, ...]]


class BatchedServable:
    """A `Servable` that joins concurrent requests on dimension 0 and runs them as one.

    Requests share a batch if they have the signature, the outputs, and the inputs' dtypes and
    shapes beyond dimension 0 in common (with `pad_variable_length_inputs`, their ranks). Every
    input and output must have the batch's rows as dimension 0. A batch runs until the latest
    deadline of its requests, each of which ends at its own. The time that a batch spends on its
    stages is spent on each of its requests. Requests for further sets of outputs than `MAX_QUEUES`
    are not joined. All requests come from one event loop.
    """

    def __init__(
        self,
        servable: Servable,
        parameters: BatchingParameters,
        device: BatchDevice | None = None,
    ) -> None:
        """Without a `device` the servable has one of its own, with `num_batch_threads` slots."""
        self.name = servable.name
        self.version = servable.version
        self.signatures: Mapping[str, Signature] = servable.signatures
        self.signature_def_map = servable.signature_def_map
        self._servable = servable
        self._parameters = parameters
        self._device = device or BatchDevice(parameters.num_batch_threads)
        self._stages: dict[_Set, TensorStage] = {}

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
        rows = rows_of(tensors)
        stage = self._stage_of(signature, tuple(sorted(outputs)))
        if stage is None:
            return await self._servable.run(signature, inputs, outputs, context)
        values = await stage(tensors, rows, context.deadline, context=context)
        return dict(zip(sorted(outputs), values, strict=True))

    async def drain(self) -> None:
        """Accept no more requests; return when those accepted have been answered."""
        for stage in self._stages.values():
            await stage.drain()

    def _stage_of(self, signature: str, outputs: tuple[str, ...]) -> TensorStage | None:
        stage = self._stages.get((signature, outputs))
        if stage is None and len(self._stages) < MAX_QUEUES:
            stage = self._stages[signature, outputs] = self._new_stage(signature, outputs)
        return stage

    def _new_stage(self, signature: str, outputs: tuple[str, ...]) -> TensorStage:
        async def run(joined: list[Array], batch: Batch[Sequence[Array]]) -> list[Array]:
            inputs = dict(zip(self.signatures[signature].inputs, joined, strict=True))
            with batch_context(batch) as context:
                found = await self._servable.run(signature, inputs, outputs, context)
            return [found[alias] for alias in outputs]

        name = f"{self.name}/{signature}"
        return TensorStage(self._device, name, self._parameters, run, outputs)
