"""What there is to count: every metric's name, labels and unit. The page has no others of ours.

Figures that shards tell of themselves (`shards/measures.py`) come besides, by their own names.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from shardserve.batching.stage_tallies import PADDING_BOUNDS, QUEUE_BOUNDS, SIZE_BOUNDS
from shardserve.batching.tallies import exponential

#: Upper bounds in microseconds of the original's latencies: 10, 18, 32.4, ... some 20 minutes.
LATENCY_BOUNDS = exponential(10, 1.8, 33)

Labels = tuple[str, ...]


class Kind(enum.StrEnum):
    """The value is Prometheus' word for it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Fold(enum.StrEnum):
    """What becomes of the values that several routers have for the same labels."""

    SUM = "sum"
    MAX = "max"


@dataclass(frozen=True)
class Family:
    """Series of one name. `labels` are their names; `bounds` are a histogram's upper ones."""

    name: str
    kind: Kind
    labels: Labels
    unit: str
    meaning: str
    bounds: tuple[float, ...] = ()
    fold: Fold = Fold.SUM


def _counter(name: str, labels: str, unit: str, meaning: str) -> Family:
    return Family(name, Kind.COUNTER, tuple(labels.split()), unit, meaning)


def _gauge(name: str, labels: str, unit: str, meaning: str, fold: Fold = Fold.SUM) -> Family:
    return Family(name, Kind.GAUGE, tuple(labels.split()), unit, meaning, fold=fold)


def _histogram(
    name: str,
    labels: str,
    meaning: str,
    bounds: tuple[float, ...] = LATENCY_BOUNDS,
    unit: str = "microseconds",
) -> Family:
    return Family(name, Kind.HISTOGRAM, tuple(labels.split()), unit, meaning, bounds)


REQUESTS = _counter(
    ":tensorflow:serving:request_count", "model_name status", "requests", "have ended, by status"
)
LATENCY = _histogram(
    ":tensorflow:serving:request_latency",
    "model_name API entrypoint",
    "of requests that succeeded, from the door and back",
)
RUNTIME = _histogram(
    ":tensorflow:serving:runtime_latency",
    "model_name API runtime",
    "of requests that succeeded, without decoding and encoding",
)
EXAMPLES = _histogram(
    ":tensorflow:serving:request_example_counts",
    "model",
    "in a MultiInference request",
    SIZE_BOUNDS,
    "Examples",
)
EXAMPLE_TOTAL = _counter(
    ":tensorflow:serving:request_example_count_total",
    "model",
    "Examples",
    "in MultiInference requests",
)
WARM_UP_LATENCY = _histogram(
    ":tensorflow:serving:model_warmup_latency",
    "model_path status",
    "of replaying a version's warm-up file",
)
WARM_UP_RECORDS = _counter(
    ":tensorflow:serving:model_warmup_records_read",
    "model_path status",
    "records",
    "of warm-up files that were replayed",
)
LOGGED = _counter(
    ":tensorflow:serving:request_log_count",
    "model_name status_code",
    "requests",
    "that were to be logged, by how that went",
)

_SESSION = ":tensorflow:serving:batching_session"

SESSION_QUEUE = _histogram(
    f"{_SESSION}:queuing_latency",
    "thread_pool_name",
    "of requests in the queue of a dense stage, or of whole requests",
    QUEUE_BOUNDS,
)
SESSION_RUNS = _counter(
    f"{_SESSION}:wrapped_run_count", "", "batches", "of these queues that have run"
)
SESSION_INPUT = _histogram(
    f"{_SESSION}:input_batch_size", "", "of each of these requests", SIZE_BOUNDS, "rows"
)
SESSION_PROCESSED = _histogram(
    f"{_SESSION}:processed_batch_size",
    "",
    "of each of these batches, padding included",
    SIZE_BOUNDS,
    "rows",
)
SESSION_PADDING = _histogram(
    f"{_SESSION}:padding_size",
    "execution_batch_size",
    "that fill such a batch up to one of `allowed_batch_sizes`, where there are any",
    PADDING_BOUNDS,
    "rows",
)
SPLITTING = _gauge(
    ":tensorflow:serving:batching:enable_large_batch_splitting",
    "model_name",
    "0 or 1",
    "whether large requests of the model are split",
    Fold.MAX,
)
BATCH_THREADS = _gauge(
    ":tensorflow:serving:batching:num_batch_threads",
    "model_name",
    "threads",
    "that run the model's batches, in each router",
    Fold.MAX,
)

FAILED_LATENCY = _histogram(
    ":shardserve:failed_request_latency",
    "model_name API entrypoint",
    "of requests that failed for other reasons than what they asked",
)
STAGE_LATENCY = _histogram(
    ":shardserve:stage_latency",
    "model_name stage",
    "of a stage (docs/request.md) of requests that succeeded",
)
EXPERIMENT_REQUESTS = _counter(
    ":shardserve:experiment_requests",
    "model_name version role status",
    "requests",
    "of models on trial; `role` is `baseline`, `canary` or `shadow`",
)
EXPERIMENT_LATENCY = _histogram(
    ":shardserve:experiment_latency",
    "model_name version role",
    "of these, if they succeeded",
)
SHADOWS_DROPPED = _counter(
    ":shardserve:experiment_shadows_dropped",
    "model_name version",
    "requests",
    "of which a shadow got no copy: too many were under way",
)
VERSION_STATE = _gauge(
    ":shardserve:model_version_state",
    "model_name version state",
    "routers",
    "in which the version is in this state",
)

_STAGE = "model_name version stage"


def _of_stage(field: str, unit: str, meaning: str, fold: Fold | None = None) -> Family:
    name = f":shardserve:batching_{field}"
    if fold is None:
        return _counter(name, _STAGE, unit, meaning)
    return _gauge(name, _STAGE, unit, meaning, fold)


#: By the field of `StageCounts`.
OF_STAGES: Mapping[str, Family] = {
    "batches": _of_stage("batches", "batches", "that have started"),
    "tasks": _of_stage("tasks", "tasks", "in these"),
    "rows": _of_stage("rows", "rows", "in these"),
    "padding_rows": _of_stage("padding_rows", "rows", "that only filled them up"),
    "refused": _of_stage("refused", "tasks", "not accepted"),
    "expired": _of_stage("expired", "tasks", "accepted, whose time ran out"),
    "queue_seconds": _of_stage("queue_seconds", "seconds", "of tasks in queues"),
    "run_seconds": _of_stage("run_seconds", "seconds", "of batches that ran"),
    "waiting_tasks": _of_stage("waiting_tasks", "tasks", "in queues now", Fold.SUM),
    "running_batches": _of_stage("running_batches", "batches", "that run now", Fold.SUM),
    "timeout_micros": _of_stage(
        "timeout_micros", "microseconds", "that a batch waits to be filled, now", Fold.MAX
    ),
    "batch_size": _of_stage("batch_size", "rows", "of a batch at most, now", Fold.MAX),
}

#: All there are, by name, in the order of the page.
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        REQUESTS,
        LATENCY,
        RUNTIME,
        EXAMPLES,
        EXAMPLE_TOTAL,
        WARM_UP_LATENCY,
        WARM_UP_RECORDS,
        LOGGED,
        SESSION_QUEUE,
        SESSION_RUNS,
        SESSION_INPUT,
        SESSION_PROCESSED,
        SESSION_PADDING,
        SPLITTING,
        BATCH_THREADS,
        FAILED_LATENCY,
        STAGE_LATENCY,
        EXPERIMENT_REQUESTS,
        EXPERIMENT_LATENCY,
        SHADOWS_DROPPED,
        VERSION_STATE,
        *OF_STAGES.values(),
    )
}
