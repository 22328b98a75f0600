"""How long a stage's tasks have waited, and how large they, and their batches, were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardserve.batching.tallies import Distribution, Tally, exponential
from shardserve.batching.tasks import Task

#: Upper bounds of microseconds in a queue, up to about one second.
QUEUE_BOUNDS = exponential(100, 1.2, 52)

#: Upper bounds of rows, of a task's or of a batch's.
SIZE_BOUNDS = exponential(1, 2, 15)

#: Upper bounds of rows that only fill a batch up.
PADDING_BOUNDS = (0.0, *SIZE_BOUNDS)


@dataclass(frozen=True)
class StageDistributions:
    """`queue_micros` and `task_rows` of tasks, by `QUEUE_BOUNDS` and `SIZE_BOUNDS`.

    `batch_rows` of batches, padding included, by `SIZE_BOUNDS`; `padding_rows` by
    `PADDING_BOUNDS`, for each size that batches were padded to.
    """

    queue_micros: Distribution
    task_rows: Distribution
    batch_rows: Distribution
    padding_rows: Mapping[int, Distribution]


class StageTallies:
    """Of one stage. `pads` says whether its batches are padded; if not, there is no padding."""

    def __init__(self, pads: bool) -> None:
        self._pads = pads
        self._queue_seconds = Tally(tuple(bound / _MICROS for bound in QUEUE_BOUNDS))
        self._task_rows = Tally(SIZE_BOUNDS)
        self._batch_rows = Tally(SIZE_BOUNDS)
        self._padding_rows: dict[int, Tally] = {}

    def started(self, tasks: Sequence[Task[Any]], rows: int, padded: int, now: float) -> None:
        """A batch of tasks starts, that have so many rows; it runs with `padded` rows."""
        self._queue_seconds.extend([now - task.queued for task in tasks])
        if rows == len(tasks):
            self._task_rows.add(1, rows)
        else:
            self._task_rows.extend([task.size for task in tasks])
        self._batch_rows.add(padded)
        if self._pads:
            self._padding_rows.setdefault(padded, Tally(PADDING_BOUNDS)).add(padded - rows)

    @property
    def queue_seconds(self) -> float:
        """What all tasks have waited."""
        return self._queue_seconds.total

    def distributions(self) -> StageDistributions:
        """Of all batches so far."""
        waited = self._queue_seconds.distribution()
        return StageDistributions(
            Distribution(waited.counts, waited.total * _MICROS),
            self._task_rows.distribution(),
            self._batch_rows.distribution(),
            {padded: tally.distribution() for padded, tally in self._padding_rows.items()},
        )


_MICROS = 1e6
