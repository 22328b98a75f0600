"""How far the start of a model has come. Replaced whole, and numbered; a person reads it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shardserve.batching.errors import Internal, ServingError, error_of
from shardserve.cluster.placement import seats
from shardserve.cluster.stage_placement import AnySeat, stage_seats
from shardserve.shards.model import ModelPlan


class Phase(enum.StrEnum):
    """In the order in which they follow each other; FAILED can follow any.

    VERIFYING is a part of planning, where checksums are asked for.
    """

    PLANNING = "planning"
    VERIFYING = "verifying"
    PLACING = "placing"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class Failure:
    """A `ServingError` as data, to travel between processes."""

    code: int
    message: str

    def error(self) -> ServingError:
        return error_of(self.code, self.message)


def failure_of(error: Exception) -> Failure:
    """An error that is none of ours counts as internal, and keeps its name."""
    if isinstance(error, ServingError):
        return Failure(error.code, error.message)
    return Failure(Internal.code, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Progress:
    """`totals` and `loaded` are bytes by seat, of slices or of what a stage actor keeps of the
    model; `note` says what is waited for.

    Bytes whose checksums are to be verified are `to_verify`, those that were `verified`.
    `is_routed` when the routers answer; they need one replica of each shard for that, not all.
    """

    number: int
    phase: Phase = Phase.PLANNING
    note: str = ""
    totals: Mapping[AnySeat, int] = field(default_factory=dict)
    loaded: Mapping[AnySeat, int] = field(default_factory=dict)
    verified: int = 0
    to_verify: int = 0
    is_routed: bool = False
    failure: Failure | None = None

    @property
    def is_served(self) -> bool:
        """Whether the start has come to its end."""
        return self.is_routed and self.phase is Phase.READY


def verified(progress: Progress, nbytes: int, total: int) -> Progress:
    """So many bytes more were verified, of `total`. What comes late changes nothing."""
    if progress.phase not in (Phase.PLANNING, Phase.VERIFYING):
        return progress
    done = progress.verified + nbytes
    return _next(progress, phase=Phase.VERIFYING, verified=done, to_verify=total)


def placing(progress: Progress, plan: ModelPlan, note: str) -> Progress:
    """The plan is known; room is being found for its shards."""
    totals, done = totals_of(plan), progress.to_verify
    return _next(progress, phase=Phase.PLACING, totals=totals, note=note, verified=done)


def totals_of(plan: ModelPlan) -> dict[AnySeat, int]:
    """Bytes that each seat has to load."""
    shards: dict[AnySeat, int] = {
        seat: plan.bytes_of_shard(seat.shard) for seat in seats(plan.layout)
    }
    kept = {group.name: group.nbytes for group in plan.stage_groups}
    return shards | {seat: kept[seat.group] for seat in stage_seats(plan.stage_groups)}


def loading(progress: Progress) -> Progress:
    """The actors are starting."""
    return _next(progress, phase=Phase.LOADING, note="")


def loaded(progress: Progress, seat: AnySeat, nbytes: int) -> Progress:
    """A seat has `nbytes` of what it loads by now."""
    if progress.loaded.get(seat) == nbytes:
        return progress
    return _next(progress, loaded={**progress.loaded, seat: nbytes})


def ready(progress: Progress) -> Progress:
    """Every seat serves. What befalls a seat later is the routing table's."""
    return _next(progress, phase=Phase.READY, loaded=progress.totals)


def routed(progress: Progress) -> Progress:
    """The routers answer."""
    return _next(progress, is_routed=True)


def failed(progress: Progress, failure: Failure) -> Progress:
    """The model cannot be served; the first failure counts."""
    if progress.phase is Phase.FAILED:
        return progress
    return _next(progress, phase=Phase.FAILED, failure=failure, note="")


def _next(progress: Progress, **changed: object) -> Progress:
    return replace(progress, number=progress.number + 1, **changed)  # type: ignore[arg-type]
