"""Counts and latencies under TensorFlow Serving's names, and ours by stage, for Prometheus."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from shardserve.batching.errors import Code
from shardserve.batching.stage import StageCounts

#: Upper bounds in microseconds: 10, 18, 32.4, ... as the original's Exponential(10, 1.8, 33).
BUCKETS = tuple(10 * 1.8**power for power in range(33))

#: Series kept of one metric. Clients choose the model names of requests that are not found.
MAX_SERIES = 4096

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_MICROSECONDS = 1e6

Labels = tuple[str, ...]


class Counter:
    """A count for each combination of labels."""

    def __init__(self, name: str, labels: Labels) -> None:
        self.name = name
        self._labels = labels
        self._counts: dict[Labels, int] = {}

    def add(self, values: Labels) -> None:
        """One more. Past `MAX_SERIES` combinations the first label is left empty."""
        if values not in self._counts and len(self._counts) >= MAX_SERIES:
            values = ("", *values[1:])
        self._counts[values] = self._counts.get(values, 0) + 1

    def lines(self) -> Iterator[str]:
        yield f"# TYPE {self.name} counter"
        for values, count in list(self._counts.items()):
            yield f"{self.name}{_labelled(self._labels, values)} {count}"


class Histogram:
    """Durations in microseconds, by `BUCKETS`, for each combination of labels."""

    def __init__(self, name: str, labels: Labels) -> None:
        self.name = name
        self._labels = labels
        self._series: dict[Labels, _Distribution] = {}

    def observe(self, values: Labels, seconds: float) -> None:
        """Add a duration. Past `MAX_SERIES` combinations the first label is left empty."""
        series = self._series.get(values)
        if series is None:
            if len(self._series) >= MAX_SERIES:
                values = ("", *values[1:])
            series = self._series.setdefault(values, _Distribution())
        series.observe(seconds * _MICROSECONDS)

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
    __slots__ = ("_counts", "count", "total")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(BUCKETS, value)] += 1
        self.count += 1
        self.total += value

    def cumulative(self) -> Iterator[tuple[str, int]]:
        reached = 0
        for bound, count in zip((*_BOUNDS, "+Inf"), self._counts, strict=True):
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
        self._stages = Histogram(":shardserve:stage_latency", ("model_name", "stage"))

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

    def page(self) -> bytes:
        """Everything in Prometheus' text form, with what the registry has besides."""
        families = (self._requests, self._latency, self._runtime, self._stages)
        lines = [line for family in families for line in family.lines()]
        lines += batching_lines(self._batching())
        return "\n".join([*lines, ""]).encode() + generate_latest(self._registry)


def batching_lines(stages: Mapping[str, StageCounts]) -> Iterator[str]:
    """What stages that batch have done, and the size and timeout that they batch with now."""
    for field in dataclasses.fields(StageCounts) if stages else ():
        kind = "gauge" if field.name in _NOW else "counter"
        yield f"# TYPE :shardserve:batching_{field.name} {kind}"
        for name, counts in stages.items():
            value = getattr(counts, field.name)
            yield f":shardserve:batching_{field.name}{_labelled(('stage',), (name,))} {value}"


#: What a stage batches with now; all else it has counted.
_NOW = frozenset({"timeout_micros", "batch_size"})

_CODEC_STAGES = frozenset({"decode", "encode"})

_BOUNDS = tuple(f"{bound:g}" for bound in BUCKETS)


def _labelled(names: Labels, values: Labels) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)]
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
