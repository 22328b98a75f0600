"""How the stages of a router's models are batched. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import BatchingParameters
from shardserve.shards.regions import Region
from shardserve.shards.sequences_form import SequenceEntry


@dataclass(frozen=True)
class LookupBatching:
    """When lookups of different requests go to a shard as one message.

    Up to `max_in_flight_batches` messages are under way to a shard at once; what comes meanwhile
    waits, and goes together: at most `max_batch_size` rows and `max_batch_bytes` bytes a message.
    Beyond `max_enqueued_batches` such messages requests are refused.
    """

    max_batch_size: int = 1 << 20
    max_batch_bytes: int = 8 << 20
    max_in_flight_batches: int = 8
    max_enqueued_batches: int = 64

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value < 1:
                raise InvalidArgument(f"{name} must be positive; was {value}")


@dataclass(frozen=True)
class Stages:
    """The batching of each kind of stage; None: that stage is not batched.

    `sequences` are signatures made of steps, by their names; `loops` are of the signatures whose
    loops are stepped. With `per_model`, a version directory's own file says what there is in it
    for `ids` and `dense`.
    """

    ids: BatchingParameters | None = None
    lookups: LookupBatching | None = None
    dense: BatchingParameters | None = None
    regions: Mapping[str, Region] = field(default_factory=dict)
    sequences: Mapping[str, SequenceEntry] = field(default_factory=dict)
    loops: Mapping[str, BatchingParameters] = field(default_factory=dict)
