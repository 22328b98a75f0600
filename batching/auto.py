"""`batch_timeout_micros: auto`: the timeout and the size that hold a p99 target, found as it runs.

Tasks come at a rate and batches run at a pace, and both are measured. From them follow the least
rows a batch needs so that the device keeps up with time to spare, the timeout that gathers so many,
and the most rows with which a task that has to wait for one batch and runs in the next still makes
the target. What the model gets wrong is corrected by what is observed: if too many tasks miss the
target the times planned for are made shorter, and slowly longer again as long as they do not.
"""

from __future__ import annotations

from shardserve.batching.pace import Pace
from shardserve.batching.parameters import Auto

#: The device is to be busy for at most so much of the time.
_BUSY = 0.7
#: Batches between two choices, and tasks between two corrections.
_BATCHES, _TASKS = 16, 500
#: The part of tasks that may miss the target.
_MAY_MISS = 0.01
_SHORTER, _LONGER, _LEAST_SHARE = 0.8, 1.05, 0.05
#: How much of the target is planned for at most, and by how much a timeout changes at once.
_PLANNED, _STEP = 0.9, 2.0


class AutoBatching:
    """What a stage batches with now: `timeout` in seconds, 0 to begin with, and `size` in rows."""

    def __init__(self, auto: Auto, largest: int) -> None:
        self.timeout = 0.0
        self.size = largest
        self._target = auto.p99_target_micros / 1e6
        self._sizes = _powers_up_to(largest)
        self._share = 1.0
        self._rate = 0.0
        self._since: float | None = None
        self._batches = self._rows = self._tasks = 0
        self._judged = self._late = self._nearly_late = 0

    def observe(self, tasks: int, rows: int, latency: float, now: float) -> bool:
        """A batch has ended whose first task took `latency` seconds. Whether to `choose` anew."""
        if self._since is None:
            self._since = now
            return False
        self._batches += 1
        self._tasks += tasks
        self._rows += rows
        self._judge(tasks, latency)
        return self._batches >= _BATCHES and now > self._since

    def choose(self, pace: Pace, slots: int, now: float) -> None:
        """Set `timeout` and `size` for the load since the last choice, on so many slots."""
        self._measure_rate(now)
        needed = self._needed(pace, slots, now)
        budget = self._target * _PLANNED * self._share
        fitting = [n for n in self._sizes if 2 * pace.seconds(n, now) <= budget]
        self.size = max([needed, *fitting])
        gather = 0.0 if needed <= self._mean_task else needed / self._rate
        wanted = max(0.0, min(gather, budget - 2 * pace.seconds(needed, now)))
        self.timeout = self._approached(wanted)
        self._batches = self._rows = self._tasks = 0
        self._since = now

    def _judge(self, tasks: int, latency: float) -> None:
        self._judged += tasks
        self._late += tasks * (latency > self._target)
        self._nearly_late += tasks * (latency > self._target * _PLANNED)
        if self._judged < _TASKS:
            return
        if self._late > _MAY_MISS * self._judged:
            self._share = max(_LEAST_SHARE, self._share * _SHORTER)
        elif self._nearly_late <= _MAY_MISS * self._judged:
            self._share = min(1.0, self._share * _LONGER)
        self._judged = self._late = self._nearly_late = 0

    def _measure_rate(self, now: float) -> None:
        assert self._since is not None
        rate = self._rows / (now - self._since)
        self._rate = (self._rate + rate) / 2 if self._rate else rate
        self._mean_task = self._rows / self._tasks

    def _needed(self, pace: Pace, slots: int, now: float) -> int:
        """The least rows with which the device has time to spare, or else does the most."""

        def busy(rows: int) -> float:
            return self._rate * pace.seconds(rows, now) / (rows * slots)

        return next((n for n in self._sizes if busy(n) <= _BUSY), min(self._sizes, key=busy))

    def _approached(self, wanted: float) -> float:
        """A step towards the timeout wanted. From and to 0 there is a smallest one."""
        smallest = self._target / 100
        most = max(self.timeout * _STEP, smallest)
        least = self.timeout / _STEP if self.timeout > smallest else 0.0
        return min(max(wanted, least), most)


def _powers_up_to(largest: int) -> list[int]:
    sizes = [1]
    while sizes[-1] * 2 < largest:
        sizes.append(sizes[-1] * 2)
    return [*sizes, largest] if largest > 1 else sizes
