"""From what each shard tells of itself to what a router's metrics page has of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shardserve.cluster.placement import Seat
from shardserve.shards.measures import Measure


def labelled(model: str, told: Mapping[Seat, Iterable[Measure]]) -> list[Measure]:
    """All measures, each with its model, shard and replica."""
    return [
        measure.labelled(model_name=model, shard=seat.shard, replica=seat.replica)
        for seat, measures in told.items()
        for measure in measures
    ]
