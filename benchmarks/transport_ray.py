"""Ray's two subjects: actor calls, and a compiled graph. Each has 4 actors of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.dag import InputNode, MultiOutputNode

from benchmarks.transport_cases import CASES, SHARDS, Array, Case, Rows, sliding_rate, timed

DEADLINE_SECONDS = 10.0
#: A compiled graph refuses to have more executions in flight than it was told at first.
GRAPH_DEPTH = max(case.depth for case in CASES)


class ShardActor:
    """A shard as a Ray actor."""

    def __init__(self) -> None:
        self._rows = Rows()

    def take(self, rows: Array) -> Array:
        """See `Rows.take`."""
        return self._rows.take(rows)

    def process(self) -> int:
        """This process's id."""
        return os.getpid()


class RayCalls:
    """One call of each actor, and `ray.get` of the four references."""

    name = "ray calls"

    def __init__(self) -> None:
        actor = ray.remote(ShardActor)
        self._actors = [actor.options(num_cpus=0).remote() for _ in range(SHARDS)]
        self.processes: list[int] = ray.get([one.process.remote() for one in self._actors])
        for case in CASES:
            Rows().check(case, self._finish(self._start(case)))

    def latencies(self, case: Case, count: int) -> list[float]:
        """See `Subject`."""
        return timed(lambda: self._finish(self._start(case)), count)

    def rate(self, case: Case, seconds: float) -> float:
        """See `Subject`."""
        return sliding_rate(lambda: self._start(case), self._finish, case.depth, seconds)

    def _start(self, case: Case) -> list[Any]:
        rows = case.wanted
        return [actor.take.remote(rows) for actor in self._actors]

    def _finish(self, references: list[Any]) -> list[Array]:
        replies: list[Array] = ray.get(references, timeout=DEADLINE_SECONDS)
        return replies


class CompiledGraph:
    """A compiled graph whose input goes to the four actors, and whose output is theirs."""

    name = "ray compiled graph"

    def __init__(self) -> None:
        actor = ray.remote(ShardActor)
        self._actors = [actor.options(num_cpus=0).remote() for _ in range(SHARDS)]
        self.processes: list[int] = ray.get([one.process.remote() for one in self._actors])
        with InputNode() as rows:
            outputs = MultiOutputNode([actor.take.bind(rows) for actor in self._actors])
        self._graph = outputs.experimental_compile(_max_inflight_executions=GRAPH_DEPTH)
        for case in CASES:
            Rows().check(case, self._finish(self._graph.execute(case.wanted)))

    def latencies(self, case: Case, count: int) -> list[float]:
        """See `Subject`."""
        rows = case.wanted
        return timed(lambda: self._finish(self._graph.execute(rows)), count)

    def rate(self, case: Case, seconds: float) -> float:
        """See `Subject`."""
        rows = case.wanted
        return sliding_rate(lambda: self._graph.execute(rows), self._finish, case.depth, seconds)

    def close(self) -> None:
        """Stop the actors' loops."""
        self._graph.teardown()

    def _finish(self, references: list[Any]) -> list[Array]:
        replies: list[Array] = ray.get(references, timeout=DEADLINE_SECONDS)
        return replies


@contextmanager
def ray_node() -> Iterator[None]:
    """A Ray node of our own."""
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=512 << 20,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def compiled_graph() -> Iterator[CompiledGraph]:
    """Needs a Ray node."""
    subject = CompiledGraph()
    try:
        yield subject
    finally:
        subject.close()
