"""A stage whose tasks are tensors: joined on dimension 0, run once, split again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Hashable, Sequence
from time import monotonic
from typing import Any, TypeAlias, cast

from shardserve.batching.driver import BatchDevice, Batcher, Call, StageCounts
from shardserve.batching.likeness import Forms, Likeness, dtype_of, shape_of
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.ragged import (
    Pairs,
    Ragged,
    check_ragged,
    join_with_ragged,
    rows_between,
    split_ragged,
)
from shardserve.batching.tasks import Batch, Priority
from shardserve.batching.tensors import Array, check_rows, fold, join, split, unfold

_HIGH = Priority.HIGH

TensorBatch: TypeAlias = Batch[Sequence[Array]]


class TensorStage:
    """Joins the tensors of concurrent calls, and gives each call its rows of the outputs.

    `run` gets the joined tensors, padding included, and the batch: its tasks in order, each with
    its `size` in rows and the `context` of its call, and as `key` the calls' `Likeness`. It returns
    the tensors that `outputs` names (or names for a group), each with as many rows as it got.
    Calls of one group whose tensors agree in dtypes and in shapes beyond dimension 0 (with
    `pad_variable_length_inputs`, in ranks) share batches. A call that is alone in its batch runs
    with its own tensors, uncopied.

    With `multiples`, dimension 0 of a tensor or an output may be a multiple of the rows: each row
    has as many lines, one after the other. `ragged` and `ragged_outputs` are the places of the
    values and the row splits of ragged tensors, whose rows are of differing lengths. All calls come
    from one event loop.
    """

    def __init__(
        self,
        device: BatchDevice,
        name: str,
        parameters: BatchingParameters,
        run: Callable[[list[Array], TensorBatch], Coroutine[Any, Any, Sequence[Array]]],
        outputs: Sequence[str] | Callable[[Hashable], Sequence[str]],
        *,
        multiples: bool = False,
        ragged: Pairs = (),
        ragged_outputs: Pairs = (),
    ) -> None:
        self._run = run
        self._outputs = outputs
        self._multiples = multiples
        self._pads_inner = parameters.pad_variable_length_inputs
        self._ragged = ragged
        self._ragged_outputs = ragged_outputs
        self._forms = Forms(pads_inner=self._pads_inner, multiples=multiples, ragged=ragged)
        self._known = self._forms.known
        self._device = device
        self._batcher: Batcher[Sequence[Array], Sequence[Array]] = device.batcher(
            name, parameters, self._run_batch, self._join_results
        )
        self._stage = self._batcher.stage
        self._high, self._low = self._stage.by_priority

    async def __call__(
        self,
        tensors: Sequence[Array],
        rows: int,
        deadline: float = math.inf,
        *,
        group: Hashable = None,
        priority: Priority = Priority.HIGH,
        context: Any = None,
    ) -> Sequence[Array]:
        """This call's rows of the outputs, in the order of their names.

        The tensors are the stage's until it returns. The results are the caller's; they are parts
        of arrays that hold the whole batch's. Raises as `Batcher.submit` does, InvalidArgument for
        tensors without `rows` rows, FailedPrecondition for outputs without the batch's.
        """
        # As lean as can be: a tenth of a microsecond here is one for each request.
        form = self._known.get((group, rows))
        if (
            form is None
            or len(tensors) != form.count
            or (
                tensors[0].shape != form.shapes[0] or tensors[0].dtype is not form.dtypes[0]
                if form.count == 1
                else [*map(shape_of, tensors)] != form.shapes
                or [*map(dtype_of, tensors)] != form.dtypes
            )
        ):
            form = self._forms.form(group, rows, tensors)
        if self._ragged:
            check_ragged(tensors, self._ragged, rows)
        nbytes = form.nbytes_of(tensors) if form.strings else form.nbytes
        device = self._device
        reply = device.new_future()
        call = Call(reply, tensors, form.size, deadline, nbytes, context)
        queue = (self._high if priority is _HIGH else self._low).get(form.likeness)
        if queue is None:
            queue = self._stage.queue(form.likeness, priority)
        actions = device.scheduler.offer(queue, call, monotonic())
        if actions:
            device.perform(actions)
        try:
            result: Sequence[Array] = await reply
        except asyncio.CancelledError:
            self._batcher.cancel(call)
            raise
        finally:
            # An error's traceback has this frame, which would be in a cycle with what has it.
            del reply, call
        return result

    def counts(self) -> StageCounts:
        """What this stage has done."""
        return self._batcher.counts()

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        await self._batcher.drain()

    async def _run_batch(self, batch: TensorBatch) -> Sequence[Sequence[Array]]:
        likeness = cast(Likeness, batch.key)
        tasks = batch.tasks
        if likeness.is_empty:
            sizes, rows = [0] * len(tasks), 0
        else:
            sizes, rows = [task.size for task in tasks], batch.padded_size
        outputs = await self._run(self._joined(batch, rows - sum(sizes), likeness.lines), batch)
        columns = self._columns(self._names(likeness.group), outputs, sizes, rows)
        if len(columns) == 1:
            return [[part] for part in columns[0]]
        return list(zip(*columns, strict=True)) if columns else [() for _ in tasks]

    def _names(self, group: Hashable) -> Sequence[str]:
        return self._outputs(group) if callable(self._outputs) else self._outputs

    def _joined(self, batch: TensorBatch, missing: int, lines: Sequence[int]) -> list[Array]:
        payloads = [task.payload for task in batch.tasks]
        folds = any(count != 1 for count in lines)
        if folds:
            payloads = [list(map(fold, tensors, lines)) for tensors in payloads]
        if batch.has_pieces:
            payloads = [
                tensors
                if task.cut is None
                else rows_between(tensors, self._ragged, task.start, task.start + task.size)
                for task, tensors in zip(batch.tasks, payloads, strict=True)
            ]
        joined = self._join(payloads, self._ragged, missing)
        return list(map(unfold, joined, lines)) if folds else joined

    def _join(self, tasks: Sequence[Sequence[Array]], ragged: Pairs, missing: int) -> list[Array]:
        if ragged:
            return join_with_ragged(tasks, ragged, missing, pad_inner=self._pads_inner)
        return join(tasks, missing, pad_inner=self._pads_inner)

    def _columns(
        self, names: Sequence[str], outputs: Sequence[Array], sizes: Sequence[int], rows: int
    ) -> list[list[Array]]:
        """Each output, split."""
        columns: dict[int, list[Array]] = {}
        for values, splits in self._ragged_outputs:
            whole = Ragged(outputs[values], outputs[splits])
            check_rows(names[splits], whole.row_splits, rows + 1)
            parts = split_ragged(whole, sizes)
            columns[values] = [part.values for part in parts]
            columns[splits] = [part.row_splits for part in parts]
        for place, (name, output) in enumerate(zip(names, outputs, strict=True)):
            if place not in columns:
                columns[place] = self._split(name, output, sizes, rows)
        return [columns[place] for place in range(len(names))]

    def _split(self, name: str, output: Array, sizes: Sequence[int], rows: int) -> list[Array]:
        lines = self._lines(output, rows)
        if lines != 1:
            return [unfold(part, lines) for part in split(fold(output, lines), sizes)]
        check_rows(name, output, rows)
        return [output] if sizes == [rows] else split(output, sizes)

    def _lines(self, output: Array, rows: int) -> int:
        if not self._multiples or not rows or not output.ndim or len(output) % rows:
            return 1
        return len(output) // rows

    def _join_results(self, parts: list[Sequence[Array]]) -> Sequence[Array]:
        return self._join(parts, self._ragged_outputs, 0)
