"""From the models that are served to the series that tell of their versions and their stages."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from shardserve.batching.stage import StageCounts
from shardserve.router.catalog import Model
from shardserve.router.metric_families import (
    BATCH_THREADS,
    OF_STAGES,
    SPLITTING,
    VERSION_STATE,
    Labels,
)
from shardserve.router.metric_snapshot import Snapshot, Value, summed
from shardserve.router.stage_figures import SESSION_STAGES, Sessions


@dataclass(frozen=True)
class StageFigures:
    """One stage of one version. `stage` is its name within the model."""

    model: str
    version: int
    stage: str
    counts: StageCounts

    @property
    def labels(self) -> Labels:
        return (self.model, str(self.version), self.stage)


class ModelFigures:
    """Looks at what is served, whenever somebody wants to know."""

    def __init__(self) -> None:
        self._sessions = Sessions()

    def look(self, models: Mapping[str, Model]) -> Snapshot:
        """The versions' states, and what their stages have done."""
        stages = list(_stages(models))
        sessions: dict[Hashable, StageCounts] = {
            one.labels: one.counts for one in stages if one.stage in SESSION_STAGES
        }
        return summed(
            [
                Snapshot({VERSION_STATE.name: _states(models)}),
                *map(_snapshot, stages),
                self._sessions.look(sessions),
            ]
        )


def _states(models: Mapping[str, Model]) -> dict[Labels, Value]:
    return {
        (name, str(number), version.state.name): 1
        for name, model in models.items()
        for number, version in model.versions.items()
    }


def _stages(models: Mapping[str, Model]) -> Iterator[StageFigures]:
    for name, model in models.items():
        for number, version in model.versions.items():
            if version.servable is not None:
                for stage, counts in version.servable.stage_counts().items():
                    yield StageFigures(name, number, stage.removeprefix(f"{name}/"), counts)


def _snapshot(stage: StageFigures) -> Snapshot:
    series: dict[str, dict[Labels, Value]] = {
        family.name: {stage.labels: getattr(stage.counts, field)}
        for field, family in OF_STAGES.items()
    }
    parameters = stage.counts.parameters
    if parameters is not None and stage.stage in SESSION_STAGES:
        series[SPLITTING.name] = {(stage.model,): int(parameters.enable_large_batch_splitting)}
        series[BATCH_THREADS.name] = {(stage.model,): parameters.slots}
    return Snapshot(series)
