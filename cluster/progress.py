"""How far the start of a server, and of each version in it, has come. A person reads it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shardserve.batching.errors import Internal, ServingError, error_of
from shardserve.cluster.placement import seats
from shardserve.cluster.serve_ingress import ServeIngress
from shardserve.cluster.stage_placement import AnySeat, stage_seats
from shardserve.cluster.versions import VersionId
from shardserve.shards.model import ModelPlan


class Phase(enum.StrEnum):
    """In the order in which they follow each other.

    VERIFYING is a part of planning, where checksums are asked for.
    """

    PLANNING = "planning"
    VERIFYING = "verifying"
    PLACING = "placing"
    LOADING = "loading"
    READY = "ready"


@dataclass(frozen=True)
class Failure:
    """A `ServingError` as data, to travel between processes."""

    code: int
    message: str

    def error(self) -> ServingError:
        return error_of(self.code, self.message)


def failure_of(error: Exception) -> Failure:
    """An error that is none of ours counts as internal, and keeps its name.

    Of what went wrong in a group of tasks, the first counts.
    """
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ServingError):
        return Failure(error.code, error.message)
    return Failure(Internal.code, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Progress:
    """How far one version is.

    `totals` and `loaded` are bytes by seat, of slices or of what a stage actor keeps of the model;
    `note` says what is waited for. Bytes whose checksums are to be verified are `to_verify`, those
    that were `verified`.
    """

    phase: Phase = Phase.PLANNING
    note: str = ""
    totals: Mapping[AnySeat, int] = field(default_factory=dict)
    loaded: Mapping[AnySeat, int] = field(default_factory=dict)
    verified: int = 0
    to_verify: int = 0


@dataclass(frozen=True)
class Start:
    """How far a server is, by version. Replaced whole; the number rises with every change.

    `is_settled` once the models of the start are served, `is_routed` when the routers answer,
    behind Serve's `ingress` too.
    `warnings` are for whoever waits. A `failure` is the end of it.
    """

    number: int
    versions: Mapping[VersionId, Progress] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    is_settled: bool = False
    is_routed: bool = False
    ingress: ServeIngress = ServeIngress()  # noqa: RUF009 (frozen)
    failure: Failure | None = None

    @property
    def is_served(self) -> bool:
        """Whether the start has come to its end."""
        return self.is_settled and self.is_routed


def started(start: Start, **changed: object) -> Start:
    """The next snapshot; the same one if nothing has changed. The first failure counts."""
    if start.failure is not None:
        return start
    after = replace(start, **changed)  # type: ignore[arg-type]
    return start if after == start else replace(after, number=start.number + 1)


def verified(progress: Progress, nbytes: int, total: int) -> Progress:
    """So many bytes more were verified, of `total`. What comes late changes nothing."""
    if progress.phase not in (Phase.PLANNING, Phase.VERIFYING):
        return progress
    done = progress.verified + nbytes
    return replace(progress, phase=Phase.VERIFYING, verified=done, to_verify=total)


def placing(progress: Progress, plan: ModelPlan, note: str) -> Progress:
    """The plan is known; room is being found for its shards."""
    totals, done = totals_of(plan), progress.to_verify
    return replace(progress, phase=Phase.PLACING, totals=totals, note=note, verified=done)


def totals_of(plan: ModelPlan) -> dict[AnySeat, int]:
    """Bytes that each seat has to load."""
    shards: dict[AnySeat, int] = {
        seat: plan.bytes_of_shard(seat.shard) for seat in seats(plan.layout)
    }
    kept = {group.name: group.nbytes for group in plan.stage_groups}
    return shards | {seat: kept[seat.group] for seat in stage_seats(plan.stage_groups)}


def loading(progress: Progress) -> Progress:
    """The actors are starting."""
    return replace(progress, phase=Phase.LOADING, note="")


def loaded(progress: Progress, seat: AnySeat, nbytes: int) -> Progress:
    """A seat has `nbytes` of what it loads by now."""
    if progress.loaded.get(seat) == nbytes:
        return progress
    return replace(progress, loaded={**progress.loaded, seat: nbytes})


def ready(progress: Progress) -> Progress:
    """Every seat serves. What befalls a seat later is the routing table's."""
    return replace(progress, phase=Phase.READY, loaded=progress.totals)
