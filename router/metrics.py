"""Counts and latencies under TensorFlow Serving's names, and ours by stage, for Prometheus."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from shardserve.batching.errors import Code
from shardserve.batching.stage import StageCounts
from shardserve.shards.measures import Measure, MeasureKind

#: Upper bounds in microseconds: 10, 18, 32.4, ... as the original's Exponential(10, 1.8, 33).
BUCKETS = tuple(10 * 1.8**power for power in range(33))

#: Upper bounds of Examples in a request, as the original's Exponential(1, 2, 15).
EXAMPLE_BUCKETS = tuple(2.0**power for power in range(15))

#: Series kept of one metric. Clients choose the model names of requests that are not found.
MAX_SERIES = 4096

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_MICROSECONDS = 1e6

Labels = tuple[str, ...]
#: What the shards tell of themselves. Never raises; those that do not answer are left out.
Measured = Callable[[], Awaitable[Sequence[Measure]]]


class Counter:
    """A count for each combination of labels."""

    def __init__(self, name: str, labels: Labels) -> None:
        self.name = name
        self._labels = labels
        self._counts: dict[Labels, int] = {}

    def add(self, values: Labels, count: int = 1) -> None:
        """So many more. Past `MAX_SERIES` combinations the first label is left empty."""
        if values not in self._counts and len(self._counts) >= MAX_SERIES:
            values = ("", *values[1:])
        self._counts[values] = self._counts.get(values, 0) + count

    def total(self) -> int:
        """Over all labels."""
        return sum(self._counts.values())

    def lines(self) -> Iterator[str]:
        yield f"# TYPE {self.name} counter"
        for values, count in list(self._counts.items()):
            yield f"{self.name}{_labelled(self._labels, values)} {count}"


class Histogram:
    """Durations in microseconds, by `BUCKETS`, for each combination of labels.

    Or sizes, by the upper bounds given.
    """

    def __init__(self, name: str, labels: Labels, bounds: tuple[float, ...] = BUCKETS) -> None:
        self.name = name
        self._labels = labels
        self._bounds = bounds
        self._series: dict[Labels, _Distribution] = {}

    def observe(self, values: Labels, seconds: float) -> None:
        """Add a duration. Past `MAX_SERIES` combinations the first label is left empty."""
        self.observe_size(values, seconds * _MICROSECONDS)

    def observe_size(self, values: Labels, size: float) -> None:
        """Add a size, in the unit of the bounds; otherwise as `observe`."""
        series = self._series.get(values)
        if series is None:
            if len(self._series) >= MAX_SERIES:
                values = ("", *values[1:])
            series = self._series.setdefault(values, _Distribution(self._bounds))
        series.observe(size)

    def lines(self) -> Iterator[str]:
        yield f"# TYPE {self.name} histogram"
        for values, series in list(self._series.items()):
            for bound, count in series.cumulative():
                labels = _labelled((*self._labels, "le"), (*values, bound))
                yield f"{self.name}_bucket{labels} {count}"
            labels = _labelled(self._labels, values)
            yield f"{self.name}_sum{labels} {series.total:g}"
            yield f"{self.name}_count{labels} {series.count}"


class _Distribution:
    __slots__ = ("_bounds", "_counts", "count", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self.count += 1
        self.total += value

    def cumulative(self) -> Iterator[tuple[str, int]]:
        reached = 0
        bounds = (*(f"{bound:g}" for bound in self._bounds), "+Inf")
        for bound, count in zip(bounds, self._counts, strict=True):
            reached += count
            yield bound, reached


class Metrics:
    """What one process tells about its requests. For one event loop; cheap per request."""

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        stages: Callable[[], Mapping[str, StageCounts]] = dict,
    ) -> None:
        """`stages` says what the stages that batch have done, by name."""
        self._registry = registry
        self._batching = stages
        self._requests = Counter(":tensorflow:serving:request_count", ("model_name", "status"))
        self._latency = Histogram(
            ":tensorflow:serving:request_latency", ("model_name", "API", "entrypoint")
        )
        self._runtime = Histogram(
            ":tensorflow:serving:runtime_latency", ("model_name", "API", "runtime")
        )
        self._example_counts = Histogram(
            ":tensorflow:serving:request_example_counts", ("model",), EXAMPLE_BUCKETS
        )
        self._example_total = Counter(":tensorflow:serving:request_example_count_total", ("model",))
        self._stages = Histogram(":shardserve:stage_latency", ("model_name", "stage"))
        version = ("model_name", "version")
        self._experiments = Counter(":shardserve:experiment_requests", (*version, "role", "status"))
        self._experiment_latency = Histogram(":shardserve:experiment_latency", (*version, "role"))
        self._shadows_dropped = Counter(":shardserve:experiment_shadows_dropped", version)
        self._logged = Counter(
            ":tensorflow:serving:request_log_count", ("model_name", "status_code")
        )
        warm_up = ("model_path", "status")
        self._warm_up = Histogram(":tensorflow:serving:model_warmup_latency", warm_up)
        self._warm_up_records = Counter(":tensorflow:serving:model_warmup_records_read", warm_up)

    def request(self, model: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        """A request has ended. Its latency counts only if it succeeded, as in the original."""
        self._requests.add((model, code.name))
        if code is Code.OK:
            self._latency.observe((model, api, entrypoint), seconds)

    def stages(self, model: str, api: str, seconds: Mapping[str, float]) -> None:
        """Where a request that succeeded spent its time, by stage."""
        running = 0.0
        for stage, spent in seconds.items():
            self._stages.observe((model, stage), spent)
            if stage not in _CODEC_STAGES:
                running += spent
        self._runtime.observe((model, api, "TF1"), running)

    def examples(self, model: str, count: int) -> None:
        """A request of so many Examples has been run; the original counts only MultiInference's."""
        self._example_counts.observe_size((model,), count)
        self._example_total.add((model,), count)

    def experiment(self, model: str, version: int, role: str, code: Code, seconds: float) -> None:
        """A version that is in an experiment has run; `role` says as what."""
        labels = (model, str(version), role)
        self._experiments.add((*labels, code.name))
        if code is Code.OK:
            self._experiment_latency.observe(labels, seconds)

    def shadow_dropped(self, model: str, version: int) -> None:
        """Too many shadows were under way for one more."""
        self._shadows_dropped.add((model, str(version)))

    def request_logged(self, model: str, code: Code) -> None:
        """A request was sampled for a model's log; other than OK: it could not be taken."""
        self._logged.add((model, code.name))

    def warm_up(self, path: str, code: Code, seconds: float, records: int) -> None:
        """The warm-up of the version at `path` has ended."""
        self._warm_up.observe((path, code.name), seconds)
        self._warm_up_records.add((path, code.name), records)

    def total(self, name: str) -> int | None:
        """What a counter has reached in this process, by TensorFlow's name for it, with slashes."""
        for counter in (self._requests, self._example_total):
            if counter.name == name.replace("/", ":"):
                return counter.total()
        return None

    def page(self, measures: Iterable[Measure] = ()) -> bytes:
        """Everything in Prometheus' text form, with what the registry has besides.

        Measures of the shards stand there under ":shardserve:" and their names.
        """
        families = (
            self._requests,
            self._latency,
            self._runtime,
            self._example_counts,
            self._example_total,
            self._stages,
            self._experiments,
            self._experiment_latency,
            self._shadows_dropped,
            self._logged,
            self._warm_up,
            self._warm_up_records,
        )
        lines = [line for family in families for line in family.lines()]
        lines += _measure_lines([*_batching(self._batching()), *measures])
        return "\n".join([*lines, ""]).encode() + generate_latest(self._registry)


def count_measures(counts: StageCounts) -> list[Measure]:
    """What a stage that batches has done, and the size and timeout that it batches with now."""
    return [
        Measure(
            f"batching_{field.name}",
            MeasureKind.GAUGE if field.name in _NOW else MeasureKind.COUNTER,
            getattr(counts, field.name),
        )
        for field in dataclasses.fields(counts)
    ]


def _batching(stages: Mapping[str, StageCounts]) -> list[Measure]:
    return [
        measure.labelled(stage=name)
        for name, counts in stages.items()
        for measure in count_measures(counts)
    ]


#: What a stage batches with now; all else it has counted.
_NOW = frozenset({"timeout_micros", "batch_size"})

_CODEC_STAGES = frozenset({"decode", "encode"})


async def nothing_measured() -> Sequence[Measure]:
    """`Measured` where there are no shards."""
    return ()


def _measure_lines(measures: Iterable[Measure]) -> Iterator[str]:
    by_name: dict[str, list[Measure]] = {}
    for measure in measures:
        by_name.setdefault(measure.name, []).append(measure)
    for name, family in by_name.items():
        yield f"# TYPE :shardserve:{name} {family[0].kind}"
        for one in family:
            names, values = tuple(zip(*one.labels, strict=True)) or ((), ())
            yield f":shardserve:{name}{_labelled(names, values)} {one.value}"


def _labelled(names: Labels, values: Labels) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)]
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
