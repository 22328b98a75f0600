"""What versions and their stages tell of themselves, and what stays when they are gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.stage import Stage, StageCounts
from shardserve.batching.tasks import Batch, Priority, Task
from shardserve.router.catalog import Model, State, Version
from shardserve.router.metric_families import (
    BATCH_THREADS,
    OF_STAGES,
    SESSION_INPUT,
    SESSION_PADDING,
    SESSION_QUEUE,
    SESSION_RUNS,
    SPLITTING,
    VERSION_STATE,
)
from shardserve.router.metric_snapshot import Snapshot
from shardserve.router.model_figures import ModelFigures
from shardserve.router.servable import Servable

_PARAMETERS = BatchingParameters(
    max_batch_size=8,
    allowed_batch_sizes=(4, 8),
    num_batch_threads=3,
    thread_pool_name="pool",
    enable_large_batch_splitting=True,
)


def _stage(batches: int) -> Stage[Any]:
    """One that has run batches of three rows, whose task had waited 2 ms."""
    stage: Stage[Any] = Stage("m/dense", _PARAMETERS)
    queue = stage.queue(None, Priority.HIGH)
    for _ in range(batches):
        batch: Batch[Any] = Batch(queue, 0.0)
        batch.add(Task(None, 3, 1.0, 0, None), 0.0)
        stage.started(batch, 0.002)
    return stage


def _version(**stages: StageCounts) -> Version:
    named = {f"m/{stage}": counts for stage, counts in stages.items()}
    servable = SimpleNamespace(stage_counts=lambda: named)
    return Version(State.AVAILABLE, cast(Servable, servable))


def _look(figures: ModelFigures, **stages: StageCounts) -> Snapshot:
    return figures.look({"m": Model({1: _version(**stages)})})


def test_each_version_tells_its_state() -> None:
    models = {"m": Model({1: Version(State.END), 2: _version()}), "n": Model({})}
    series = ModelFigures().look(models).series[VERSION_STATE.name]
    assert series == {("m", "1", "END"): 1, ("m", "2", "AVAILABLE"): 1}


def test_stages_tell_what_they_have_done_by_model_version_and_name() -> None:
    counts = StageCounts(batches=2, tasks=5, queue_seconds=0.25, timeout_micros=100)
    series = _look(ModelFigures(), requests=counts).series
    labels = ("m", "1", "requests")
    assert series[OF_STAGES["tasks"].name] == {labels: 5}
    assert series[OF_STAGES["queue_seconds"].name] == {labels: 0.25}
    assert series[OF_STAGES["timeout_micros"].name] == {labels: 100}


def test_a_dense_stage_feeds_the_originals_batching_metrics() -> None:
    series = _look(ModelFigures(), dense=_stage(5).counts()).series
    assert series[SESSION_RUNS.name] == {(): 5}
    assert series[SESSION_QUEUE.name]["pool",].count == 5
    assert series[SESSION_INPUT.name][()].total == 15
    assert series[SESSION_PADDING.name]["4",].total == 5
    assert series[BATCH_THREADS.name] == {("m",): 3}
    assert series[SPLITTING.name] == {("m",): 1}


def test_other_stages_do_not_feed_them() -> None:
    series = _look(ModelFigures(), ids=_stage(5).counts()).series
    assert SESSION_RUNS.name not in series
    assert BATCH_THREADS.name not in series


def test_what_a_version_that_is_gone_has_batched_still_counts() -> None:
    figures = ModelFigures()
    _look(figures, dense=_stage(5).counts())
    assert figures.look({}).series[SESSION_RUNS.name] == {(): 5}
    after = _look(figures, dense=_stage(2).counts())
    assert after.series[SESSION_RUNS.name] == {(): 7}
    again = _look(figures, dense=_stage(1).counts())
    assert again.series[SESSION_RUNS.name] == {(): 8}


def test_a_stage_tells_what_waits_and_what_runs() -> None:
    stage = _stage(0)
    queue = stage.queue(None, Priority.HIGH)
    queue.open_batch(0.0).add(Task(None, 1, 1.0, 0, None), 0.0)
    queue.running = 2
    assert (stage.counts().waiting_tasks, stage.counts().running_batches) == (1, 2)
