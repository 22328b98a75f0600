"""How the stages of a model are batched. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import BatchingParameters
from shardserve.shards.regions import Region

if TYPE_CHECKING:
    # A shard process has plans, and pydantic only where there are sequences or loops in them.
    from shardserve.shards.sequences_form import LoopEntry, SequenceEntry


@dataclass(frozen=True)
class LookupBatching:
    """When lookups of different requests go to a shard as one message.

    Up to `max_in_flight_batches` messages are under way to a shard at once; what comes meanwhile
    waits, and goes together: at most `max_batch_size` rows and `max_batch_bytes` bytes a message,
    but for a request that is larger by itself. Where over `max_enqueued_batches` such messages
    would wait, a request is refused.
    """

    max_batch_size: int = 1 << 18
    max_batch_bytes: int = 4 << 20
    max_in_flight_batches: int = 2
    max_enqueued_batches: int = 64

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value < 1:
                raise InvalidArgument(f"{name} must be positive; was {value}")


@dataclass(frozen=True)
class Stages:
    """The batching of each kind of stage; None: that one is not batched.

    With `requests`, whole requests are joined before the first stage and walk on together.
    `regions` are those that the operator names. The model's own are batched as the model says.
    `sequences` are signatures made of steps, by their names, `loops` the signatures whose loops are
    stepped.
    """

    requests: BatchingParameters | None = None
    ids: BatchingParameters | None = None
    lookups: LookupBatching | None = None
    dense: BatchingParameters | None = None
    regions: tuple[Region, ...] = ()
    sequences: Mapping[str, SequenceEntry] = field(default_factory=dict)
    loops: Mapping[str, LoopEntry] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchingOptions:
    """Where a model's `Stages` are said.

    `parameters` are those of a server that batches, None of one that does not. With `per_model`
    those of a model are in the file `batching_params.pbtxt` of its version directory, and a model
    without that file is not batched. What `stages_file` says of a stage counts before both.
    """

    parameters: BatchingParameters | None = None
    per_model: bool = False
    stages_file: Path | None = None
