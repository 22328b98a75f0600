"""Flags that say how models are cut and kept; --model_options_file says it for each of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from shardserve.batching.errors import InvalidArgument
from shardserve.cluster.flags.group import flag, size
from shardserve.shards.model import DEFAULT_THRESHOLD, PlanOptions
from shardserve.shards.stages import BatchingOptions
from shardserve.shards.storage import Precision, Storage, Tier

#: What a layout file says for itself.
SAID_BY_LAYOUT = ("shards", "cut_threshold", "tier", "precision")


@dataclass(frozen=True)
class ShardingFlags:
    PANEL: ClassVar[str] = "Shards"

    shards: Annotated[int, flag("Shards to cut the tables over.", min=1)] = 1
    replicas: Annotated[
        int | None,
        flag("Processes for each shard; 1, or what the layout says.", min=1, show_default=False),
    ] = None
    layout: Annotated[
        Path | None,
        flag("A layout file, instead of a plan.", metavar="FILE", resolve_path=True),
    ] = None
    memory_per_shard: Annotated[
        int | None,
        flag("Such as 20GiB.", metavar="SIZE", parser=size, show_default="unbounded"),
    ] = None
    cut_threshold: Annotated[
        int,
        flag("Variables this large are cut.", metavar="SIZE", parser=size, show_default="16MiB"),
    ] = DEFAULT_THRESHOLD
    tier: Annotated[Tier, flag("Where tables lie, if there is no layout.")] = Tier.MEMORY
    precision: Annotated[
        Precision, flag("What float32 tables are kept as, if there is no layout.")
    ] = Precision.AS_SAVED
    verify_checksums: Annotated[bool, flag("Read and check the tables' bytes before loading.")] = (
        False
    )


def plan_of(
    flags: ShardingFlags,
    batching: BatchingOptions,
    tags: tuple[str, ...],
    given: Collection[str],
    *,
    allow_pickle: bool,
    trusted_types: tuple[str, ...],
) -> PlanOptions:
    """Raises InvalidArgument as `refuse_beside_layout`."""
    refuse_beside_layout(given, flags.layout)
    return PlanOptions(
        flags.shards,
        flags.replicas,
        flags.layout,
        flags.memory_per_shard,
        flags.cut_threshold,
        tags,
        Storage(flags.tier, flags.precision),
        flags.verify_checksums,
        batching,
        allow_pickle=allow_pickle,
        trusted_types=trusted_types,
    )


def refuse_beside_layout(given: Collection[str], file: Path | None) -> None:
    """Raise InvalidArgument for a flag that is `given` though a layout file says the same."""
    for name in SAID_BY_LAYOUT:
        if file is not None and name in given:
            raise InvalidArgument(f"--{name} is the layout's to say: {file} is used as it is")
