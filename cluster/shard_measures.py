"""From what each actor tells of itself to what a router's metrics page has of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from shardserve.cluster.stage_placement import AnySeat, StageSeat
from shardserve.shards.measures import Measure


def labelled(model: str, told: Mapping[AnySeat, Iterable[Measure]]) -> list[Measure]:
    """All measures, each with its model, and its shard or its group of stage actors, and replica.

    Those of stage actors have names of their own, with "stage_" before them.
    """
    return [
        _of_seat(measure, model, seat) for seat, measures in told.items() for measure in measures
    ]


def _of_seat(measure: Measure, model: str, seat: AnySeat) -> Measure:
    if isinstance(seat, StageSeat):
        named = replace(measure, name=f"stage_{measure.name}")
        return named.labelled(model_name=model, group=seat.group, replica=seat.replica)
    return measure.labelled(model_name=model, shard=seat.shard, replica=seat.replica)
