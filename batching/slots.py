"""The arrays of a running batch: a row for each sequence, moved only when sequences come and go.

Each carried state is one array [rows, ...]: what a step returns is what the next one gets, and
nothing is copied. When sequences leave, those that join take their rows, or the last rows move up;
only then a state is copied. What sequences bring for every step, and what they keep of every step,
is staged `WINDOW` steps at a time in arrays [WINDOW, rows, ...], so that a step's own part lies
together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardserve.batching.row_arrays import (
    WINDOW,
    Kind,
    check_kept,
    check_state,
    kind_of,
    padded,
    resettled,
    scattered,
    wider,
)
from shardserve.batching.step_form import RowResult, SequenceRow, StepForm
from shardserve.batching.tensors import Array, NotBatchable


class RunningBatch:
    """The rows that are stepped together.

    Between steps sequences `join`, `finish` and `leave`. A step is `prepare`, the step function on
    what that returns, and `commit`; if the function fails, nothing has happened. The rows of one
    batch agree in dtypes, and in shapes but for `per_step`'s steps. Not for two threads at once.
    """

    def __init__(self, form: StepForm) -> None:
        self._form = form
        self._rows: list[SequenceRow | None] = []
        self._holes: list[int] = []
        self._joining: list[SequenceRow] = []
        # Carried states, then constants.
        self._resident: list[Array] = []
        self._outputs: list[Array] = []
        self._staged: list[Array] = []
        self._kept: list[Array] = []
        # Of what is kept, while there is any sequence.
        self._kinds: list[Kind] = []
        self._at = WINDOW
        self._clock = 0
        self._part: Sequence[SequenceRow] | None = None
        self._step_rows = 0

    def __len__(self) -> int:
        return len(self._rows) - len(self._holes) + len(self._joining)

    def join(self, row: SequenceRow) -> None:
        """The sequence takes part in the steps from the next one on."""
        row.chunks = [[] for _ in self._form.every]
        row.slot = -1
        self._joining.append(row)

    def leave(self, row: SequenceRow) -> None:
        """Free the row of a sequence."""
        if row.slot < 0:
            self._joining.remove(row)
        else:
            self._rows[row.slot] = None
            self._holes.append(row.slot)
        if not len(self):
            self._outputs, self._kept, self._kinds = [], [], []

    def finish(self, row: SequenceRow) -> RowResult:
        """Free the row of a sequence that has taken a step at least; what it returns, its own."""
        self._flush(row)
        last = [self._outputs[place][row.slot : row.slot + 1].copy() for place in self._form.last]
        every = [np.concatenate(chunks) for chunks in row.chunks]
        self.leave(row)
        return RowResult(self._clock - row.base, last, every)

    def prepare(self, rows: int, part: Sequence[SequenceRow] | None = None) -> list[Array]:
        """The inputs of the next step of all sequences, or of a `part`, padded to `rows` rows.

        They must not be written to, nor read after `commit`.
        """
        if self._holes or self._joining or (self._resident and len(self._resident[0]) != rows):
            self._settle(rows if part is None else len(self))
        self._part, self._step_rows = part, rows
        if part is not None:
            return self._inputs_of(part, rows)
        if self._at == WINDOW:
            self._next_window(rows)
        staged = [window[self._at, :rows] for window in self._staged]
        if rows > len(self._rows):
            for inputs in staged:
                # What is left there of others could be refused.
                inputs[len(self._rows) :] = inputs[:1]
        carried = self._form.carried
        return [*self._resident[:carried], *staged, *self._resident[carried:]]

    def commit(self, outputs: Sequence[Array]) -> list[SequenceRow]:
        """The step has been taken: the sequences that stop with it.

        Raises NotBatchable for an output without the step's rows, FailedPrecondition for a state
        of another shape or dtype than it had, or an output that is kept of every step; then nothing
        has happened.
        """
        self._check(outputs)
        owned = [self._unshared(output) for output in outputs]
        if not self._kinds:
            self._kinds = [kind_of(owned[place]) for place in self._form.every]
        if self._part is not None:
            return self._commit_part(self._part, owned)
        self._outputs = owned
        self._resident[: self._form.carried] = owned[: self._form.carried]
        if self._form.every:
            self._keep(owned)
        self._at += 1
        self._clock += 1
        return self._stopped(owned, self._rows)

    # Who has which row.

    def _settle(self, rows: int) -> None:
        """Give the rows that were freed to those that join, or to the last ones."""
        moves, joined = self._places()
        count = len(self._rows)
        firsts = zip(*[(*row.initial, *row.constant) for row in joined], strict=True)
        if not self._resident:
            self._resident = [np.concatenate(values) for values in firsts]
            self._resident = [padded(array, rows) for array in self._resident]
        else:
            columns = list(firsts) or [()] * len(self._resident)
            self._resident = [
                resettled(array, rows, count, moves, joined, values)
                for array, values in zip(self._resident, columns, strict=True)
            ]
        self._stage_room(rows)
        for source, target in moves:
            for window in self._staged:
                window[self._at :, target] = window[self._at :, source]
            for window in self._kept:
                # Who has only stepped in a part has nothing there, and maybe no place.
                if source < window.shape[1]:
                    window[: self._at, target] = window[: self._at, source]
        for row in joined:
            row.base = self._clock
            row.kept_from = self._at
            self._stage(row)

    def _places(self) -> tuple[list[tuple[int, int]], list[SequenceRow]]:
        """Settle `_rows`; the moves (from, to) that this takes, and who joined."""
        joined, self._joining = self._joining, []
        holes = sorted(self._holes, reverse=True)
        self._holes = []
        for row in joined:
            row.slot = holes.pop() if holes else len(self._rows)
            self._rows[row.slot : row.slot + 1] = [row]
        moves = []
        for hole in reversed(holes):
            while self._rows and self._rows[-1] is None:
                self._rows.pop()
            if hole < len(self._rows):
                last = self._rows.pop()
                assert last is not None
                moves.append((last.slot, hole))
                last.slot = hole
                self._rows[hole] = last
        return moves, joined

    # Windows.

    def _next_window(self, rows: int) -> None:
        living = [row for row in self._rows if row is not None]
        for row in living:
            self._flush(row)
            row.kept_from = 0
        self._at = 0
        self._stage_room(rows)
        for row in living:
            self._stage(row)

    def _stage_room(self, rows: int) -> None:
        """Windows of at least so many rows."""
        if self._staged and self._staged[0].shape[1] >= rows:
            return
        first = next((row for row in self._rows if row is not None), None)
        if first is None:
            return
        kinds = [(values.dtype, values.shape[1:]) for values in first.per_step]
        old: Sequence[Array | None] = self._staged or [None] * len(kinds)
        self._staged = [wider(w, rows, *kind) for w, kind in zip(old, kinds, strict=True)]

    def _stage(self, row: SequenceRow) -> None:
        position = self._clock - row.base
        for window, values in zip(self._staged, row.per_step, strict=True):
            chunk = values[position : position + WINDOW - self._at]
            window[self._at : self._at + len(chunk), row.slot] = chunk

    def _keep(self, outputs: Sequence[Array]) -> None:
        kept = [outputs[place] for place in self._form.every]
        if not self._kept or self._kept[0].shape[1] < len(kept[0]):
            old: Sequence[Array | None] = self._kept or [None] * len(kept)
            self._kept = [
                wider(window, len(output), output.dtype, output.shape[1:])
                for window, output in zip(old, kept, strict=True)
            ]
        for window, output in zip(self._kept, kept, strict=True):
            window[self._at, : len(output)] = output

    def _flush(self, row: SequenceRow) -> None:
        """Put aside what the window holds for the sequence."""
        if row.kept_from < self._at:
            for chunks, window in zip(row.chunks, self._kept, strict=True):
                chunks.append(window[row.kept_from : self._at, row.slot].copy())
            row.kept_from = self._at

    # A part of the batch, which is rare.

    def _inputs_of(self, part: Sequence[SequenceRow], rows: int) -> list[Array]:
        slots = [row.slot for row in part]
        resident = [padded(array[slots], rows) for array in self._resident]
        staged = [
            padded(np.stack([row.per_step[n][self._clock - row.base] for row in part]), rows)
            for n in range(self._form.per_step)
        ]
        carried = self._form.carried
        return [*resident[:carried], *staged, *resident[carried:]]

    def _commit_part(
        self, part: Sequence[SequenceRow], outputs: Sequence[Array]
    ) -> list[SequenceRow]:
        slots = [row.slot for row in part]
        before: Sequence[Array | None] = self._outputs or [None] * len(outputs)
        self._outputs = [
            scattered(old, len(self._rows), slots, output[: len(part)])
            for old, output in zip(before, outputs, strict=True)
        ]
        for place in range(self._form.carried):
            self._resident[place] = self._resident[place].copy()
            self._resident[place][slots] = outputs[place][: len(part)]
            self._resident[place][len(self._rows) :] = self._resident[place][:1]
        behind = set(slots)
        for row in filter(None, self._rows):
            self._flush(row)
            row.kept_from = WINDOW
            row.base += row.slot not in behind
        for number, row in enumerate(part):
            for chunks, place in zip(row.chunks, self._form.every, strict=True):
                chunks.append(outputs[place][number : number + 1].copy())
        self._at = WINDOW
        self._clock += 1
        return self._stopped(outputs, part)

    # Outputs.

    def _check(self, outputs: Sequence[Array]) -> None:
        for name, output in zip(self._form.outputs, outputs, strict=True):
            if output.ndim == 0:
                raise NotBatchable(f"output {name!r} of the step has 0 dimensions")
            if len(output) != self._step_rows:
                raise NotBatchable(
                    f"output {name!r} of the step has {len(output)} rows; it ran with "
                    f"{self._step_rows}"
                )
        states = self._resident[: self._form.carried]
        for name, output, state in zip(self._form.outputs, outputs, states, strict=False):
            check_state(name, output, state)
        for place, kind in zip(self._form.every, self._kinds, strict=False):
            check_kept(self._form.outputs[place], outputs[place], kind)

    def _unshared(self, output: Array) -> Array:
        """The output, copied if it lies in a window, which the next steps overwrite."""
        for window in self._staged:
            if np.may_share_memory(output, window):
                return output.copy()
        return output

    def _stopped(
        self, outputs: Sequence[Array], rows: Sequence[SequenceRow | None]
    ) -> list[SequenceRow]:
        if self._form.stop is None:
            return []
        place, value = self._form.stop
        output = outputs[place][: len(rows)]
        hits = (output == value).reshape(len(rows), -1).all(1)
        return [row for slot in np.flatnonzero(hits).tolist() if (row := rows[slot]) is not None]
