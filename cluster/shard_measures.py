"""From what each actor tells of itself to what the metrics page has of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from shardserve.cluster.stage_placement import AnySeat, StageSeat
from shardserve.shards.address import Address
from shardserve.shards.measures import Measure, MeasureKind


def labelled(model: str, version: int, told: Mapping[AnySeat, Iterable[Measure]]) -> list[Measure]:
    """All measures of a version's actors, each with its shard or its group, and replica.

    Those of stage actors have names of their own, with "stage_" before them.
    """
    return [
        _of_seat(measure, model, version, seat)
        for seat, measures in told.items()
        for measure in measures
    ]


def routed(
    model: str, version: int, seats: Iterable[tuple[AnySeat, Address | None]]
) -> list[Measure]:
    """For each seat of a version whether routers know an actor there: 1, else 0."""
    return labelled(
        model,
        version,
        {seat: [_ROUTED if address else _NOT_ROUTED] for seat, address in seats},
    )


_ROUTED = Measure("routed", MeasureKind.GAUGE, 1)

_NOT_ROUTED = replace(_ROUTED, value=0)


def _of_seat(measure: Measure, model: str, version: int, seat: AnySeat) -> Measure:
    if isinstance(seat, StageSeat):
        named = replace(measure, name=f"stage_{measure.name}")
        return named.labelled(
            model_name=model, version=version, group=seat.group, replica=seat.replica
        )
    return measure.labelled(
        model_name=model, version=version, shard=seat.shard, replica=seat.replica
    )
