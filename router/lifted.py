"""Runs loops of a graph step by step, for the requests of all its callers together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shardserve.batching.driver import BatchDevice, StageCounts
from shardserve.batching.errors import Unimplemented
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.step_driver import StepCounts
from shardserve.batching.step_form import RowResult, SequenceRow, StepForm
from shardserve.router.servable import Array, RequestContext
from shardserve.router.session import TensorFlowRunner
from shardserve.router.stage_runner import StageRunner
from shardserve.router.stepped import SteppedRows, on_threads
from shardserve.shards.cut.loops import Kept, StepLoop


class CannotStep(Unimplemented):
    """Of these operands a step does not do what the loop does: run the loop itself.

    Never a client's to see.
    """


class LoopRunner:
    """Runs one lifted loop here. It is a `HostedStage`, whose inputs are the loop's operands.

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
        given = operands_of(self._loop, tensors)
        rows, steps = extent_of(self._loop, given, self._most_rows)
        started = time.monotonic()
        try:
            results = await self._stepped.run(
                _sequences(given, rows, steps),
                [steps] * rows,
                _likeness(1, [*given.states, *given.constants]) + _likeness(2, given.reads),
                context.deadline,
                nbytes=sum(tensor.nbytes for tensor in tensors),
            )
        finally:
            context.spend("dense", time.monotonic() - started)
        return _outputs(self._loop, results)

    def step_counts(self) -> StepCounts:
        """What has been done."""
        return self._stepped.counts()

    def counts(self) -> StageCounts:
        """The same, as of a stage."""
        return self.step_counts().as_stage()

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        await self._stepped.drain()


class RemoteLoop:
    """A lifted loop that stage actors step: its operands go there whole. A `StageRunner`."""

    def __init__(self, loop: StepLoop, actors: StageRunner, most_rows: int) -> None:
        self._loop = loop
        self._actors = actors
        self._most_rows = most_rows

    async def run(
        self, tensors: Sequence[Array], rows: int, context: RequestContext
    ) -> list[Array]:
        """As `LoopRunner.run`. What cannot be stepped is not sent, as far as it is known here."""
        rows, _ = extent_of(self._loop, operands_of(self._loop, tensors), self._most_rows)
        try:
            return await self._actors.run(tensors, rows, context)
        except Unimplemented as error:
            # As an actor's CannotStep comes over the wire.
            raise CannotStep(error.message) from error


@dataclass(frozen=True)
class Operands:
    """A call's operands: states and constants [rows, ...], what is read [steps, rows, ...]."""

    states: Sequence[Array]
    reads: Sequence[Array]
    constants: Sequence[Array]
    scalars: Sequence[Array]


def operands_of(loop: StepLoop, tensors: Sequence[Array]) -> Operands:
    """The tensors of a loop's call, by what they are."""
    counts = itertools.accumulate((loop.states, loop.reads, loop.constants), initial=0)
    (a, b, c, d) = counts
    return Operands(tensors[a:b], tensors[b:c], tensors[c:d], tensors[d:])


def extent_of(loop: StepLoop, given: Operands, most_rows: int) -> tuple[int, int]:
    """The rows of a call, at most so many, and their steps. Raises CannotStep."""
    steps = _steps(loop, given.reads, given.scalars)
    return _rows([*given.states, *given.constants], given.reads, most_rows), steps


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


def _sequences(given: Operands, rows: int, steps: int) -> list[SequenceRow]:
    return [
        SequenceRow(
            [state[n : n + 1] for state in given.states],
            [read[:steps, n] for read in given.reads],
            [constant[n : n + 1] for constant in given.constants],
        )
        for n in range(rows)
    ]


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
