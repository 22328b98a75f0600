"""One stage on a device: its parameters, its pace, its queues, and what it has counted."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from shardserve.batching.auto import AutoBatching
from shardserve.batching.errors import Unavailable
from shardserve.batching.pace import Pace
from shardserve.batching.parameters import Auto, BatchingParameters
from shardserve.batching.stage_queue import StageQueue
from shardserve.batching.stage_tallies import StageDistributions, StageTallies
from shardserve.batching.tasks import Batch, Priority

T = TypeVar("T")

#: Keys of a stage with tasks waiting. Clients choose the shapes that make a key: it is bounded.
MAX_QUEUES = 256


@dataclass(frozen=True)
class StageCounts:
    """What a stage has done since it was made, and how it is now.

    `refused` counts tasks that were not accepted, `expired` accepted ones whose time ran out. The
    seconds are sums: of tasks in queues, and of batches that ran. It batches with this timeout and
    size now, while so many tasks wait and so many batches run. `parameters` are what it was made
    with, and `distributions` of what it has done; None of what is no stage of a device.
    """

    batches: int = 0
    tasks: int = 0
    rows: int = 0
    padding_rows: int = 0
    refused: int = 0
    expired: int = 0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    timeout_micros: int = 0
    batch_size: int = 0
    waiting_tasks: int = 0
    running_batches: int = 0
    parameters: BatchingParameters | None = None
    distributions: StageDistributions | None = None


class Stage(Generic[T]):
    """What a scheduler knows of one stage."""

    def __init__(self, name: str, parameters: BatchingParameters) -> None:
        self.name = name
        self.parameters = parameters
        #: The queues by key, of high priority and of low.
        self.by_priority: tuple[dict[Hashable, StageQueue[T]], ...] = ({}, {})
        self.pace = Pace()
        self.closed = False
        self.size = parameters.execution_size
        timeout = parameters.batch_timeout_micros
        self.auto = AutoBatching(timeout, self.size) if isinstance(timeout, Auto) else None
        self.timeout = 0.0 if isinstance(timeout, Auto) else timeout / 1e6
        self.refused = self.expired = 0
        self._run_seconds = 0.0
        self._tallies = StageTallies(pads=bool(parameters.allowed_batch_sizes))

    @property
    def is_idle(self) -> bool:
        """Whether none of its tasks waits and none of its batches runs."""
        return all(queue.is_idle for queue in self.queues())

    def queue(self, key: Hashable, priority: Priority) -> StageQueue[T]:
        """The queue of a key. Raises Unavailable where too many keys have tasks waiting."""
        queue = self.by_priority[priority].get(key)
        return queue if queue is not None else self._new_queue(key, priority)

    def queues(self) -> list[StageQueue[T]]:
        """All there are."""
        return [queue for queues in self.by_priority for queue in queues.values()]

    def sibling(self, queue: StageQueue[T]) -> StageQueue[T] | None:
        """The queue of the same key and the other priority, if there is one."""
        return self.by_priority[1 - queue.priority].get(queue.key)

    def started(self, batch: Batch[T], now: float) -> None:
        """Count a batch that starts to run."""
        self._tallies.started(batch.tasks, batch.size, batch.padded_size, now)

    def ended(self, batch: Batch[T], slots: int, now: float) -> float:
        """Learn from a batch that ran well. Returns the least such batches took lately."""
        assert batch.started is not None
        seconds = now - batch.started
        self._run_seconds += seconds
        least = self.pace.observe(batch.padded_size, seconds, now)
        if self.auto is not None:
            self._adapt(self.auto, batch, slots, now)
        return least

    def close(self) -> None:
        """Accept no more tasks; let what is open run."""
        self.closed = True
        for queue in self.queues():
            queue.close()

    def counts(self) -> StageCounts:
        queues, found = self.queues(), self._tallies.distributions()
        rows = int(found.task_rows.total)
        return StageCounts(
            batches=found.batch_rows.count,
            tasks=found.task_rows.count,
            rows=rows,
            padding_rows=int(found.batch_rows.total) - rows,
            refused=self.refused,
            expired=self.expired,
            queue_seconds=self._tallies.queue_seconds,
            run_seconds=self._run_seconds,
            timeout_micros=round(self.timeout * 1e6),
            batch_size=self.size,
            waiting_tasks=sum(len(b.tasks) for queue in queues for b in queue.batches),
            running_batches=sum(queue.running for queue in queues),
            parameters=self.parameters,
            distributions=found,
        )

    def _adapt(self, auto: AutoBatching, batch: Batch[T], slots: int, now: float) -> None:
        latency = now - batch.tasks[0].queued
        if auto.observe(len(batch.tasks), batch.size, latency, now):
            auto.choose(self.pace, slots, now)
            self.timeout, self.size = auto.timeout, auto.size
            for queue in self.by_priority[Priority.HIGH].values():
                queue.timeout, queue.limit = auto.timeout, auto.size

    def _new_queue(self, key: Hashable, priority: Priority) -> StageQueue[T]:
        queues = self.by_priority[priority]
        if len(queues) >= MAX_QUEUES:
            for other in [queue for queue in queues.values() if queue.is_idle]:
                del queues[other.key]
        if len(queues) >= MAX_QUEUES:
            raise Unavailable(f"Tasks of {MAX_QUEUES} different shapes are waiting to be batched")
        queue = queues[key] = StageQueue(self, key, priority)
        return queue
