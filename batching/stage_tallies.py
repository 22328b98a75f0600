"""How long a stage's tasks have waited, and how large they, and their batches, were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardserve.batching.tallies import Distribution, Tally, exponential

#: Upper bounds of microseconds in a queue, up to about one second.
QUEUE_BOUNDS = exponential(100, 1.2, 52)

#: Upper bounds of rows, of a task's or of a batch's.
SIZE_BOUNDS = exponential(1, 2, 15)

#: Upper bounds of rows that only fill a batch up.
PADDING_BOUNDS = (0.0, *SIZE_BOUNDS)

#: Tasks whose sizes are kept as they came, before equal ones are counted, all at once.
_KEPT = 1024


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
        self._kept_sizes: list[int] = []
        self._kept_batches: list[tuple[int, int]] = []

    def started(self, waits: Sequence[float], sizes: Sequence[int], rows: int, padded: int) -> None:
        """A batch starts: what its tasks have waited, in seconds, and the rows of each, and of all.

        It runs with `padded` rows.
        """
        self._queue_seconds.extend(waits)
        self._kept_sizes += sizes
        self._kept_batches.append((rows, padded))
        if len(self._kept_sizes) >= _KEPT:
            self._count_sizes()

    def distributions(self) -> StageDistributions:
        """Of all batches so far."""
        self._count_sizes()
        waited = self._queue_seconds.distribution()
        return StageDistributions(
            Distribution(waited.counts, waited.total * _MICROS),
            self._task_rows.distribution(),
            self._batch_rows.distribution(),
            {padded: tally.distribution() for padded, tally in self._padding_rows.items()},
        )

    def _count_sizes(self) -> None:
        for size, tasks in Counter(self._kept_sizes).items():
            self._task_rows.add_times(size, tasks)
        for (rows, padded), batches in Counter(self._kept_batches).items():
            self._batch_rows.add_times(padded, batches)
            if self._pads:
                padding = self._padding_rows.setdefault(padded, Tally(PADDING_BOUNDS))
                padding.add_times(padded - rows, batches)
        self._kept_sizes.clear()
        self._kept_batches.clear()


_MICROS = 1e6
