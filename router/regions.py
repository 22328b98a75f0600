"""Who runs a region of a model: this router, from its program, or somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy.typing as npt

from shardserve.batching.driver import BatchDevice, StageCounts
from shardserve.batching.tensor_stage import TensorBatch, TensorStage
from shardserve.batching.tensors import rows_of
from shardserve.router.batch_context import batch_context
from shardserve.router.servable import RequestContext
from shardserve.router.stage_runner import StageRunner
from shardserve.shards.cut.regions import Region, RegionCall

Array = npt.NDArray[Any]
T = TypeVar("T")

#: Bytes of captured tensors that are compared to find out who may share a batch.
MAX_COMPARED_BYTES = 1 << 16


#: Runs a program's stages and calls from the tensors of its inputs; the outputs, in order.
RunProgram = Callable[[Sequence[Array], RequestContext], Coroutine[Any, Any, list[Array]]]


class LocalRegion:
    """Runs a region in this router: concurrent calls are joined, whoever makes them."""

    def __init__(self, region: Region, device: BatchDevice, run_program: RunProgram) -> None:
        self._inputs = len(region.inputs)
        self._run_program = run_program
        self._stage = TensorStage(
            device, region.name, region.batching, self._run_batch, region.outputs
        )

    async def run(
        self, tensors: Sequence[Array], rows: int, context: RequestContext
    ) -> list[Array]:
        """See `StageRunner.run`."""
        captured = tensors[self._inputs :]
        call = _Call(context, captured)
        group = _likeness(captured)
        inputs = tensors[: self._inputs]
        return [*await self._stage(inputs, rows, context.deadline, group=group, context=call)]

    def counts(self) -> StageCounts:
        """What has been done so far."""
        return self._stage.counts()

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        await self._stage.drain()

    async def _run_batch(self, joined: list[Array], batch: TensorBatch) -> Sequence[Array]:
        captured = batch.tasks[0].context.captured
        with batch_context(batch, lambda call: call.request) as context:
            return await self._run_program([*joined, *captured], context)


@dataclass(frozen=True)
class _Call:
    """For whom, and with what it captured; all of a batch captured the same."""

    request: RequestContext
    captured: Sequence[Array]


def _likeness(captured: Sequence[Array]) -> Hashable:
    """Equal for equal tensors; what is too large to compare is like nothing else."""
    if sum(array.nbytes for array in captured) > MAX_COMPARED_BYTES:
        return object()
    return tuple([(array.dtype.str, array.shape, _value(array)) for array in captured])


def _value(array: Array) -> Hashable:
    return tuple(array.flat) if array.dtype.hasobject else array.tobytes()


class Regions:
    """The regions of one model, by name, and who runs each."""

    def __init__(self, runners: Mapping[str, StageRunner], inputs: Mapping[str, int]) -> None:
        self._runners = runners
        self._inputs = inputs

    def runner(self, name: str) -> StageRunner:
        """Who runs the region of this name. Raises KeyError."""
        return self._runners[name]

    def counts(self) -> dict[str, StageCounts]:
        """What those that are run here have done, by name."""
        local = {n: one for n, one in self._runners.items() if isinstance(one, LocalRegion)}
        return {name: one.counts() for name, one in local.items()}

    async def drain(self) -> None:
        """Accept no more in those that are run here; return when all that was has ended."""
        for runner in self._runners.values():
            drain = getattr(runner, "drain", None)
            if drain is not None:
                await drain()

    async def run(
        self, call: RegionCall, known: Mapping[str, Array], context: RequestContext
    ) -> dict[str, Array]:
        """The tensors that the call makes known.

        Raises InvalidArgument for inputs that do not agree in dimension 0, and as
        `StageRunner.run` does.
        """
        tensors = [known[name] for name in call.operands]
        rows = rows_of(tensors[: self._inputs[call.region]])
        outputs = await self._runners[call.region].run(tensors, rows, context)
        return dict(zip(call.outputs, outputs, strict=True))


async def together(awaitables: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order, or the first error, once the others are cancelled."""
    if len(awaitables) == 1:
        return [await awaitables[0]]
    tasks = [asyncio.ensure_future(one) for one in awaitables]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        await _cancelled(tasks)
        # The error's traceback has this frame, which would be in a cycle with what has the error.
        del tasks
        raise


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
