"""Batches whole requests around a servable's run, as TensorFlow Serving's --enable_batching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from shardserve.batching.driver import Batcher
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.tasks import Batch
from shardserve.batching.tensors import batch_tensors, rows_of, unbatch_tensors
from shardserve.router.servable import Array, RequestContext, Servable, Signature


class BatchedServable:
    """A `Servable` that joins concurrent requests on dimension 0 and runs them as one.

    Requests share a batch if they have the signature, the outputs, and the inputs' dtypes and
    shapes beyond dimension 0 in common (with `pad_variable_length_inputs`, their ranks). Every
    input and output must have the batch's rows as dimension 0. A batch runs until the latest
    deadline of its requests, each of which ends at its own. The time that a batch spends on its
    stages is spent on each of its requests. A request that is alone in its batch runs as it is.
    All requests come from one event loop.
    """

    def __init__(self, servable: Servable, parameters: BatchingParameters) -> None:
        self.name = servable.name
        self.version = servable.version
        self.signatures: Mapping[str, Signature] = servable.signatures
        self.signature_def_map = servable.signature_def_map
        self._servable = servable
        self._parameters = parameters
        self._batcher: Batcher[_Request, dict[str, Array]] = Batcher(parameters, self._run_batch)

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
        group = _Group(signature, tuple(sorted(outputs)), self._likeness(tensors))
        request = _Request(inputs, tensors, rows, context)
        # A request of no rows takes a place as well, so that a batch has a bounded number of them.
        return await self._batcher.submit(group, request, max(1, rows), context.deadline)

    async def drain(self) -> None:
        """Accept no more requests; return when those accepted have been answered."""
        await self._batcher.drain()

    def _likeness(self, tensors: Sequence[Array]) -> tuple[object, ...]:
        if self._parameters.pad_variable_length_inputs:
            return tuple([(tensor.dtype, tensor.ndim) for tensor in tensors])
        return tuple([(tensor.dtype, tensor.shape[1:]) for tensor in tensors])

    async def _run_batch(self, batch: Batch[_Request]) -> list[dict[str, Array]]:
        _spend_waiting(batch)
        group = cast(_Group, batch.key)
        requests = [task.payload for task in batch.tasks]
        sizes = [request.rows for request in requests]
        rows = self._parameters.padded(sum(sizes))
        if sizes == [rows]:
            inputs, context = requests[0].inputs, requests[0].context
        else:
            inputs, context = self._joined(group, requests, rows), _common_context(requests)
        try:
            outputs = await self._servable.run(group.signature, inputs, group.outputs, context)
        finally:
            _share_stages(context, requests)
        return unbatch_tensors(outputs, sizes, rows)

    def _joined(self, group: _Group, requests: Sequence[_Request], rows: int) -> dict[str, Array]:
        tensors = batch_tensors(
            [request.tensors for request in requests],
            rows,
            self._parameters.pad_variable_length_inputs,
        )
        return dict(zip(self.signatures[group.signature].inputs, tensors, strict=True))


class _Group(NamedTuple):
    """What requests of one batch have in common."""

    signature: str
    outputs: tuple[str, ...]
    likeness: tuple[object, ...]


class _Request(NamedTuple):
    """`tensors` are `inputs` in the signature's order."""

    inputs: Mapping[str, Array]
    tensors: Sequence[Array]
    rows: int
    context: RequestContext


def _spend_waiting(batch: Batch[_Request]) -> None:
    assert batch.started is not None
    for task in batch.tasks:
        task.payload.context.spend("queue", batch.started - task.queued)


def _common_context(requests: Sequence[_Request]) -> RequestContext:
    first = requests[0].context.request_id
    return RequestContext(
        request_id=first if len(requests) == 1 else f"{first}+{len(requests) - 1}",
        deadline=max(request.context.deadline for request in requests),
    )


def _share_stages(context: RequestContext, requests: Sequence[_Request]) -> None:
    for request in requests:
        if request.context is not context:
            for stage, seconds in context.seconds.items():
                request.context.spend(stage, seconds)
