"""What one process counts of its requests and its models, under the names of `metric_families`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from prometheus_client import REGISTRY, CollectorRegistry

from shardserve.batching.errors import Code
from shardserve.router import metric_families as families
from shardserve.router.catalog import Model
from shardserve.router.metric_page import page
from shardserve.router.metric_series import CLIENTS_FAULTS, Counter, Histogram
from shardserve.router.metric_snapshot import Snapshot, summed
from shardserve.router.model_figures import ModelFigures
from shardserve.router.process_figures import process_figures
from shardserve.shards.measures import Measure

#: What the shards tell of themselves. Never raises; those that do not answer are left out.
Measured = Callable[[], Awaitable[Sequence[Measure]]]

#: What all routers have counted together, packed. Raises a `ServingError` where that is not known.
Collected = Callable[[], Awaitable[bytes]]


class Metrics:
    """What one process tells about its requests. For one event loop; cheap per request."""

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        models: Callable[[], Mapping[str, Model]] = dict,
        router: str = "",
    ) -> None:
        """`registry` has what the process tells of itself besides; `models` says what is served.

        `router` tells processes apart whose figures come on one page.
        """
        self._registry = registry
        self._models = models
        self._router = router
        self._model_figures = ModelFigures()
        self._requests = Counter(families.REQUESTS)
        self._latency = Histogram(families.LATENCY)
        self._failed = Histogram(families.FAILED_LATENCY)
        self._runtime = Histogram(families.RUNTIME)
        self._stages = Histogram(families.STAGE_LATENCY)
        self._example_counts = Histogram(families.EXAMPLES)
        self._example_total = Counter(families.EXAMPLE_TOTAL)
        self._warm_up_latency = Histogram(families.WARM_UP_LATENCY)
        self._warm_up_records = Counter(families.WARM_UP_RECORDS)
        self._logged = Counter(families.LOGGED)
        self._experiment_requests = Counter(families.EXPERIMENT_REQUESTS)
        self._experiment_latency = Histogram(families.EXPERIMENT_LATENCY)
        self._shadows_dropped = Counter(families.SHADOWS_DROPPED)
        self._counted: tuple[Counter | Histogram, ...] = (
            self._requests,
            self._latency,
            self._failed,
            self._runtime,
            self._stages,
            self._example_counts,
            self._example_total,
            self._warm_up_latency,
            self._warm_up_records,
            self._logged,
            self._experiment_requests,
            self._experiment_latency,
            self._shadows_dropped,
        )

    def request(self, model: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        """A request has ended. In the original's latency it counts only if it succeeded.

        Ours of failures leaves out what was wrong with the request, such as its model's name: it
        says nothing of how long things take, and clients could make series of it.
        """
        self._requests.add((model, _NAMES[code]))
        if not code:
            self._latency.observe((model, api, entrypoint), seconds)
        elif code not in CLIENTS_FAULTS:
            self._failed.observe((model, api, entrypoint), seconds)

    def stages(self, model: str, api: str, seconds: Mapping[str, float]) -> None:
        """Where a request that succeeded spent its time, by stage."""
        running = 0.0
        observe = self._stages.observe
        for stage, spent in seconds.items():
            observe((model, stage), spent)
            if stage not in _CODEC_STAGES:
                running += spent
        self._runtime.observe((model, api, "TF1"), running)

    def examples(self, model: str, count: int) -> None:
        """A request of so many Examples has been run; the original counts only MultiInference's."""
        self._example_counts.tally((model,)).add(count)
        self._example_total.add((model,), count)

    def warm_up(self, path: str, code: Code, seconds: float, records: int) -> None:
        """The warm-up of the version at `path` has ended, after so many records."""
        labels = (path, code.name)
        self._warm_up_latency.observe(labels, seconds)
        self._warm_up_records.add(labels, records)

    def request_logged(self, model: str, code: Code) -> None:
        """A request was sampled for a model's log; other than OK: it could not be taken."""
        self._logged.add((model, code.name))

    def experiment(self, model: str, version: int, role: str, code: Code, seconds: float) -> None:
        """A request of a model that has a version on trial has ended.

        `version` is the one that ran it, as "baseline", "canary" or "shadow".
        """
        labels = (model, str(version), role)
        self._experiment_requests.add((*labels, code.name))
        if code is Code.OK:
            self._experiment_latency.observe(labels, seconds)

    def shadow_dropped(self, model: str, version: int) -> None:
        """Too many shadows were under way for one more."""
        self._shadows_dropped.add((model, str(version)))

    def total(self, name: str) -> int | None:
        """What a counter has reached in this process, by TensorFlow's name for it, with slashes."""
        family = families.FAMILIES.get(name.replace("/", ":"))
        if family is None or family.kind is not families.Kind.COUNTER:
            return None
        counts = self.taken().series.get(family.name, {}).values()
        return sum(count for count in counts if isinstance(count, int))

    def taken(self) -> Snapshot:
        """All of it as it is now."""
        counted = {kept.family.name: kept.series() for kept in self._counted}
        process = {self._router: process_figures(self._registry)}
        return summed([Snapshot(counted, process), self._model_figures.look(self._models())])

    async def snapshot(self) -> bytes:
        """`taken`, packed: what one router's page is made of, and part of what all routers' is."""
        return self.taken().packed()

    def page(self, measures: Iterable[Measure] = ()) -> bytes:
        """The page of this process alone."""
        return page(self.taken(), measures)


async def nothing_measured() -> Sequence[Measure]:
    """`Measured` where there are no shards."""
    return ()


_NAMES = tuple(code.name for code in Code)

_CODEC_STAGES = frozenset({"decode", "encode"})
