"""From what a stage that batches has done to the series and measures that tell of it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from shardserve.batching.stage import StageCounts
from shardserve.batching.tallies import Distribution
from shardserve.router.metric_families import (
    OF_STAGES,
    SESSION_INPUT,
    SESSION_PADDING,
    SESSION_PROCESSED,
    SESSION_QUEUE,
    SESSION_RUNS,
    Labels,
)
from shardserve.router.metric_snapshot import Snapshot, Value, summed
from shardserve.shards.measures import Measure, MeasureKind

#: The stages that do what the original's BatchingSession does: whole requests', and what is left of
#: them where a model is cut.
SESSION_STAGES = frozenset({"requests", "dense"})


def count_measures(counts: StageCounts) -> list[Measure]:
    """What a stage has done, and how it is now, for a page that has it under "batching_"."""
    return [
        Measure(f"batching_{field}", MeasureKind(family.kind.value), getattr(counts, field))
        for field, family in OF_STAGES.items()
    ]


class Sessions:
    """What all stages like the original's BatchingSession have done, those that are gone included.

    Their series have no model's name, so they must not fall when a version is unloaded. What a
    stage did after it was last looked at is lost.
    """

    def __init__(self) -> None:
        self._gone = Snapshot()
        self._last: Mapping[Hashable, StageCounts] = {}

    def look(self, stages: Mapping[Hashable, StageCounts]) -> Snapshot:
        """Of all stages until now; `stages` are those that there are, by what tells them apart."""
        ended = [
            _session(last)
            for key, last in self._last.items()
            if key not in stages or stages[key].batches < last.batches
        ]
        self._gone = summed([self._gone, *ended])
        self._last = dict(stages)
        return summed([self._gone, *map(_session, stages.values())])


def _session(counts: StageCounts) -> Snapshot:
    parameters, found = counts.parameters, counts.distributions
    if parameters is None or found is None:
        return Snapshot()
    padding: dict[Labels, Value] = {
        (str(size),): distribution for size, distribution in found.padding_rows.items()
    }
    nameless: Mapping[str, Distribution | int] = {
        SESSION_RUNS.name: counts.batches,
        SESSION_INPUT.name: found.task_rows,
        SESSION_PROCESSED.name: found.batch_rows,
    }
    return Snapshot(
        {
            SESSION_QUEUE.name: {(parameters.thread_pool_name,): found.queue_micros},
            **{name: {(): value} for name, value in nameless.items()},
            **({SESSION_PADDING.name: padding} if padding else {}),
        }
    )
