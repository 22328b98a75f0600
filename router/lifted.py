"""Runs loops of a graph step by step, for the requests of all its callers together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from shardserve.batching.driver import BatchDevice
from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.step_driver import StepCounts
from shardserve.batching.step_form import RowResult, SequenceRow, StepForm
from shardserve.router.servable import Array, RequestContext
from shardserve.router.session import TensorFlowRunner
from shardserve.router.stepped import SteppedRows, on_threads
from shardserve.shards.cut.loops import Kept, StepLoop


class CannotStep(InvalidArgument):
    """Of these operands a step does not do what the loop does: run the loop itself."""


class LoopRunner:
    """Runs one lifted loop. It is a `RegionRunner`, whose operands are those of the loop's call.

    All calls come from one event loop.
    """

    def __init__(
        self,
        loop: StepLoop,
        runner: TensorFlowRunner,
        parameters: BatchingParameters,
        device: BatchDevice | None = None,
    ) -> None:
        stage = runner.make_callable(loop.feeds, loop.fetches)
        self._loop = loop
        self._most_rows = parameters.max_batch_size
        self._stepped = SteppedRows(
            loop.node,
            parameters,
            form_of(loop),
            on_threads(runner.threads, lambda values: stage(*values)),
            device,
        )

    async def run(
        self, tensors: Sequence[Array], rows: int, context: RequestContext
    ) -> list[Array]:
        """The outputs of the loop's call, for the operands `tensors`, which say the rows too.

        Raises CannotStep before anything has run, and as `SteppedRows.run` does.
        """
        loop = self._loop
        counts = itertools.accumulate((loop.states, loop.reads, loop.constants), initial=0)
        (a, b, c, d) = counts
        states, reads, constants, scalars = tensors[a:b], tensors[b:c], tensors[c:d], tensors[d:]
        steps = _steps(loop, reads, scalars)
        rows = _rows([*states, *constants], reads, self._most_rows)
        results = await self._stepped.run(
            [
                SequenceRow(
                    [state[n : n + 1] for state in states],
                    [read[:steps, n] for read in reads],
                    [constant[n : n + 1] for constant in constants],
                )
                for n in range(rows)
            ],
            [steps] * rows,
            _likeness(1, [*states, *constants]) + _likeness(2, reads),
            context.deadline,
            nbytes=sum(tensor.nbytes for tensor in tensors),
        )
        return _outputs(loop, results)

    def step_counts(self) -> StepCounts:
        """What has been done."""
        return self._stepped.counts()

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        await self._stepped.drain()


def form_of(loop: StepLoop) -> StepForm:
    """The loop's step; `last` and `every` are the places of `kept` of those kinds, in its order."""
    return StepForm(
        carried=loop.states,
        per_step=loop.reads,
        constant=loop.constants,
        outputs=loop.fetches,
        last=tuple(place for place, what in loop.kept if what is not Kept.ALL),
        every=tuple(place for place, what in loop.kept if what is Kept.ALL),
    )


def _likeness(inner: int, tensors: Sequence[Array]) -> tuple[object, ...]:
    return tuple([(tensor.dtype, tensor.shape[inner:]) for tensor in tensors])


def _steps(loop: StepLoop, reads: Sequence[Array], scalars: Sequence[Array]) -> int:
    bounds, sizes = scalars[: loop.bounds], scalars[loop.bounds :]
    steps = min([int(bound) for bound in bounds])
    if steps < 1:
        raise CannotStep("the loop takes no step")
    if any(len(read) < steps for read in reads):
        raise CannotStep("the loop reads past the end of a list")
    if any(int(size) != steps for size in sizes):
        raise CannotStep("the loop writes to only some of a list's elements")
    return steps


def _rows(states: Sequence[Array], reads: Sequence[Array], most: int) -> int:
    found = {len(state) for state in states} | {read.shape[1] for read in reads}
    if len(found) != 1:
        raise CannotStep("the loop's states and lists differ in their rows")
    (rows,) = found
    if not 0 < rows <= most:
        raise CannotStep("the loop has no rows, or more than a running batch")
    return rows


def _outputs(loop: StepLoop, results: Sequence[RowResult]) -> list[Array]:
    last = iter(range(len(loop.kept)))
    every = iter(range(len(loop.kept)))
    outputs = []
    for _, what in loop.kept:
        if what is Kept.ALL:
            place = next(every)
            outputs.append(np.stack([result.every[place] for result in results], axis=1))
        else:
            place = next(last)
            joined = np.concatenate([result.last[place] for result in results])
            outputs.append(joined[None] if what is Kept.LAST_OF_LIST else joined)
    return outputs
