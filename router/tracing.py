"""Traces of requests: what is recorded of one on its way, and who is told when it has ended.

Off unless somebody asks for it; then a request's context takes no notes. `router/otel.py`, which
knows OpenTelemetry, is imported only when it is on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from shardserve.batching.errors import Code, InvalidArgument
from shardserve.router.servable import RequestContext, Said
from shardserve.router.trace_collector import Collector


class Spent(NamedTuple):
    """A stage's time, told at `told`, both in nanoseconds; `told` is on `time.time_ns`."""

    stage: str
    duration: int
    told: int


class StageSpan(NamedTuple):
    """When a stage ran, in nanoseconds of `time.time_ns`."""

    stage: str
    start: int
    end: int


class RemoteWork(NamedTuple):
    """What a shard or a stage actor did for a request.

    Its work `began`, by waiting for `queue_seconds`, then took `work_seconds`. The former is on
    `time.time_ns`, and the router's guess: half the time on the wire after it had asked.
    """

    name: str
    began: int
    queue_seconds: float
    work_seconds: float


@dataclass
class TracedContext(RequestContext):
    """A context that keeps when it was told of each stage, and what others did for it.

    It began at `started`.
    """

    started: int = field(default_factory=time.time_ns)
    spent: list[Spent] = field(default_factory=list)
    remote: list[RemoteWork] = field(default_factory=list)

    def spend(self, stage: str, seconds: float) -> None:
        """See `RequestContext.spend`."""
        super().spend(stage, seconds)
        self.spent.append(Spent(stage, round(seconds * 1e9), time.time_ns()))

    def told(self, said: Iterable[Said], elapsed: float) -> None:
        """See `RequestContext.told`."""
        self.remote += remote_work(said, elapsed)


@dataclass(frozen=True)
class Ended:
    """How a request has ended: the `name` of what was asked, and OpenTelemetry's attributes."""

    name: str
    attributes: Mapping[str, str | int]
    code: Code
    message: str = ""


class Traces(Protocol):
    """Takes requests that have ended, and passes on those that are sampled. Never waits."""

    def ended(self, context: TracedContext, ended: Ended) -> None:
        """A request has ended, just now."""
        ...

    def close(self) -> None:
        """Send what is left, for some seconds at most. Blocks."""
        ...


def traced(context: RequestContext) -> TracedContext:
    """The same request, from now on with a record of its stages."""
    return TracedContext(
        context.request_id, context.deadline, headers=context.headers, chance=context.chance
    )


def remote_work(said: Iterable[Said], elapsed: float) -> list[RemoteWork]:
    """What others did for a request, who were asked `elapsed` seconds ago, and answered just now.

    The slowest is taken to have held up the answer.
    """
    told = list(said)
    slowest = max((queued + worked for _, queued, worked in told), default=0.0)
    began = time.time_ns() - round((elapsed + min(slowest, elapsed)) / 2 * 1e9)
    return [RemoteWork(name, began, queued, worked) for name, queued, worked in told]


def stage_spans(spent: Iterable[Spent], started: int) -> list[StageSpan]:
    """When each stage ran. It ended when it was told of, or before the stage told of next began.

    Stages are told of when they are over, some several at once, in their order. What took place at
    the same time is laid end to end, and nothing begins before the request.
    """
    spans: list[StageSpan] = []
    following: int | None = None
    for stage, duration, told in reversed(list(spent)):
        end = max(started, told if following is None else min(told, following))
        following = max(started, end - duration)
        spans.append(StageSpan(stage, following, end))
    return spans[::-1]


def traces_to(collector: Collector | None) -> Traces | None:
    """Sends traces to a collector; None for none.

    Raises InvalidArgument where the extra is not installed.
    """
    if collector is None:
        return None
    try:
        from shardserve.router import otel  # noqa: PLC0415 (only where it is wanted)
    except ImportError as error:
        text = f"traces need `pip install 'shardserve[tracing]'`: {error}"
        raise InvalidArgument(text) from error
    traces: Any = otel.to_collector(collector)
    return traces  # type: ignore[no-any-return]
