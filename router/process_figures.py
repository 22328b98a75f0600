"""What a process tells of itself through Prometheus' own client: memory, collections, and the like.

Such figures do not add up over processes. They stand on the page as they are, by router.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

#: Samples of one process.
MAX_SAMPLES = 4096

_Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ProcessSample:
    """One figure of a family. `sample` is its own name, such as "process_cpu_seconds_total"."""

    family: str
    kind: str
    help: str
    sample: str
    labels: _Labels
    value: float


@dataclass(frozen=True)
class ProcessFigures:
    """Of one process; samples of one family are neighbours."""

    samples: tuple[ProcessSample, ...] = ()

    def plain(self) -> list[Any]:
        """What `of_plain` takes, of lists, strings and numbers."""
        return [
            [one.family, one.kind, one.help, one.sample, [list(p) for p in one.labels], one.value]
            for one in self.samples
        ]

    @classmethod
    def of_plain(cls, plain: Any) -> ProcessFigures:
        """Raises ValueError or TypeError for what `plain` did not make."""
        return cls(
            tuple(
                ProcessSample(
                    str(family),
                    str(kind),
                    str(text),
                    str(sample),
                    tuple((str(name), str(value)) for name, value in labels),
                    float(value),
                )
                for family, kind, text, sample, labels, value in plain
            )
        )


def process_figures(registry: CollectorRegistry) -> ProcessFigures:
    """What `registry` has now, at most `MAX_SAMPLES` of it."""
    found = (
        ProcessSample(
            metric.name,
            metric.type,
            metric.documentation,
            sample.name,
            tuple(sample.labels.items()),
            float(sample.value),
        )
        for metric in registry.collect()
        for sample in metric.samples
    )
    return ProcessFigures(tuple(itertools.islice(found, MAX_SAMPLES)))


def process_page(processes: Mapping[str, ProcessFigures]) -> bytes:
    """All figures in Prometheus' text form, those of a router with an id labelled with it."""
    registry = CollectorRegistry()
    registry.register(_Collected(tuple(_families(processes))))
    return generate_latest(registry)


class _Collected(Collector):
    """A collector of what there is."""

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _families(processes: Mapping[str, ProcessFigures]) -> Iterator[Metric]:
    metrics: dict[str, Metric] = {}
    for router, figures in sorted(processes.items()):
        for one in figures.samples:
            if one.family not in metrics:
                metrics[one.family] = Metric(one.family, one.help, one.kind)
            labels = {"router": router, **dict(one.labels)} if router else dict(one.labels)
            metrics[one.family].add_sample(one.sample, labels, one.value)
    yield from metrics.values()
