"""Flags of the commands that serve nothing: `inspect` and `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from shardserve.cluster.flags.group import flag, size
from shardserve.shards.model import DEFAULT_THRESHOLD
from shardserve.shards.storage import Precision, Tier

_Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Base path or version directory.")]
_Threshold = Annotated[
    int,
    flag("Variables this large are cut.", metavar="SIZE", parser=size, show_default="16MiB"),
]
_Tags = Annotated[str, flag("Tags of the MetaGraph, by comma.")]


@dataclass(frozen=True)
class InspectFlags:
    PANEL: ClassVar[str] = "Options"

    directory: _Directory
    layout: Annotated[
        Path | None, flag("A layout file, instead of a plan.", metavar="FILE", resolve_path=True)
    ] = None
    cut_threshold: _Threshold = DEFAULT_THRESHOLD
    stages: Annotated[bool, flag("Show each signature's stages, and how they are batched.")] = False
    stages_file: Annotated[
        Path | None, flag("As `serve` is to be told.", metavar="FILE", resolve_path=True)
    ] = None
    enable_batching: Annotated[bool, flag("As `serve` is to be told.")] = False
    batching_parameters_file: Annotated[
        Path | None, flag("As `serve` is to be told.", metavar="FILE")
    ] = None
    saved_model_tags: _Tags = "serve"


@dataclass(frozen=True)
class PlanFlags:
    PANEL: ClassVar[str] = "Options"

    directory: _Directory
    shards: Annotated[int, flag("Shards to cut the tables over.", min=1)] = 1
    replicas: Annotated[
        int | None,
        flag("Processes for each shard; 1, or what the layout says.", min=1, show_default=False),
    ] = None
    memory_per_shard: Annotated[
        int | None,
        flag("Such as 20GiB.", metavar="SIZE", parser=size, show_default="unbounded"),
    ] = None
    cut_threshold: _Threshold = DEFAULT_THRESHOLD
    tier: Annotated[Tier, flag("Where tables lie.")] = Tier.MEMORY
    precision: Annotated[Precision, flag("What float32 tables are kept as.")] = Precision.AS_SAVED
    check: Annotated[
        Path | None,
        flag(
            "Plan nothing; say whether this layout file fits the model, and its loads.",
            metavar="FILE",
            resolve_path=True,
        ),
    ] = None
    row_counts: Annotated[
        Path | None,
        flag("How often the rows of each table are read.", metavar="FILE", resolve_path=True),
    ] = None
    saved_model_tags: _Tags = "serve"
