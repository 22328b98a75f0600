"""A stage whose tasks are tensors: joined on dimension 0, run once, split again."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any

from shardserve.batching.driver import BatchDevice, Batcher, StageCounts
from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.tasks import Batch, Priority
from shardserve.batching.tensors import Array, batch_tensors, unbatch_tensors


class TensorStage:
    """Joins the tensors of concurrent calls, and gives each call its rows of the outputs.

    `run` gets the joined tensors, padding included, and the batch: its tasks in order, each with
    its `size` in rows and the `context` of its call. It returns the tensors that `outputs` names,
    each with as many rows as it got. Calls of one group whose tensors agree in dtypes and in shapes
    beyond dimension 0 (with `pad_variable_length_inputs`, in ranks) share batches. With
    `multiples`, dimension 0 of a tensor or an output may be any multiple of the rows: each row
    has as many lines. All calls come from one event loop.
    """

    def __init__(
        self,
        device: BatchDevice,
        name: str,
        parameters: BatchingParameters,
        run: Callable[[list[Array], Batch[Sequence[Array]]], Coroutine[Any, Any, Sequence[Array]]],
        outputs: Sequence[str],
        *,
        multiples: bool = False,
    ) -> None:
        self._parameters = parameters
        self._run = run
        self._outputs = outputs
        self._batcher: Batcher[Sequence[Array], list[Array]] = device.batcher(
            name, parameters, self._run_batch
        )

    async def __call__(
        self,
        tensors: Sequence[Array],
        rows: int,
        deadline: float = math.inf,
        *,
        group: Hashable = None,
        priority: Priority = Priority.HIGH,
        context: Any = None,
    ) -> list[Array]:
        """This call's rows of the outputs, in the order of their names.

        The tensors are the stage's until it returns; the results are views of a batch's outputs,
        not to be written to. Raises as `Batcher.submit` does, InvalidArgument for tensors that do
        not have `rows` rows, NotBatchable for outputs that do not have the batch's rows.
        """
        for tensor in tensors:
            if tensor.ndim == 0 or len(tensor) != rows:
                raise InvalidArgument(
                    "Batching Run() input tensors must have equal 0th-dimension size"
                )
        key = (group, self._likeness(tensors))
        return await self._batcher.submit(
            key, tensors, max(1, rows), deadline, priority=priority, context=context
        )

    def counts(self) -> StageCounts:
        """What this stage has done."""
        return self._batcher.counts()

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        await self._batcher.drain()

    def _likeness(self, tensors: Sequence[Array]) -> tuple[object, ...]:
        if self._parameters.pad_variable_length_inputs:
            return tuple([(tensor.dtype, tensor.ndim) for tensor in tensors])
        return tuple([(tensor.dtype, tensor.shape[1:]) for tensor in tensors])

    async def _run_batch(self, batch: Batch[Sequence[Array]]) -> list[list[Array]]:
        tasks = [task.payload for task in batch.tasks]
        sizes = [len(tensors[0]) for tensors in tasks]
        rows = self._parameters.padded(sum(sizes))
        joined = batch_tensors(tasks, rows, self._parameters.pad_variable_length_inputs)
        outputs = await self._run(joined, batch)
        named = dict(zip(self._outputs, outputs, strict=True))
        return [list(part.values()) for part in unbatch_tensors(named, sizes, rows)]
