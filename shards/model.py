"""The plan of one version of a model: all that a shard or a router must know. Plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shardserve.shards.layout import Layout, Slice
from shardserve.shards.stage_groups import StageGroup
from shardserve.shards.stages import BatchingOptions, Stages
from shardserve.shards.storage import PLAIN, Storage
from shardserve.shards.tables import TableSource

DEFAULT_THRESHOLD = 16 << 20

TENSORFLOW = "tensorflow"


@dataclass(frozen=True)
class PlanOptions:
    """How to plan. A `layout_file` settles everything but `replicas`, where that is set.

    `replicas` None is the layout file's number, or 1. `memory_per_shard` in bytes, None for no
    bound. Variables of at least `threshold` bytes are cut, if there is no layout file, and kept as
    `storage` says: at its precision those that can be, the others as saved. With
    `verify_checksums` all bytes of the cut tables are read once before they are loaded. `batching`
    says how stages are batched, and which regions there are. With `allow_pickle` a version of
    another kind than TensorFlow's may run code of its maker's while it is loaded; without, it may
    make objects of the `trusted_types` besides those that are known to be harmless.
    """

    shards: int = 1
    replicas: int | None = None
    layout_file: Path | None = None
    memory_per_shard: int | None = None
    threshold: int = DEFAULT_THRESHOLD
    tags: tuple[str, ...] = ("serve",)
    storage: Storage = PLAIN
    verify_checksums: bool = False
    batching: BatchingOptions = BatchingOptions()  # noqa: RUF009 (frozen)
    allow_pickle: bool = False
    trusted_types: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelPlan:
    """What is served, from where, and which slice lies on which shard.

    `sources` has each table of the layout. `fingerprint` is equal for equal plans over equal
    checkpoints; a router and a shard of different fingerprints refuse each other. A model with
    nothing to cut has a layout without tables, and needs no shards. `has_regions` where some part
    of its graph, marked by it or named in `stages`, is a stage of its own; `stage_groups` are the
    actors of those that routers do not run themselves. What is of another `platform` than
    TensorFlow's is never cut, and may be loaded from a pickle with `allow_pickle`, or made of
    `trusted_types`.
    """

    name: str
    version: int
    directory: str
    tags: tuple[str, ...]
    layout: Layout
    sources: Mapping[str, TableSource]
    fingerprint: str
    stages: Stages = field(default_factory=Stages)
    has_regions: bool = False
    stage_groups: tuple[StageGroup, ...] = ()
    platform: str = TENSORFLOW
    allow_pickle: bool = False
    trusted_types: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is cut."""
        return not self.layout.tables

    def stage_group(self, name: str) -> StageGroup:
        """The group of this name. Raises KeyError."""
        return {group.name: group for group in self.stage_groups}[name]

    def slices_of_shard(self, shard: int) -> tuple[Slice, ...]:
        """The slices on one shard; a slice's place is its id in messages."""
        return self.layout.slices_of_shard(shard)

    def bytes_of_shard(self, shard: int) -> int:
        """Bytes of its slices that one shard reads when it starts."""
        return sum(
            piece.loaded_bytes(self.sources[piece.table].table)
            for piece in self.slices_of_shard(shard)
        )

    def memory_of_shard(self, shard: int) -> int:
        """Bytes of the host's memory that one shard takes, its hot rows of mapped slices included.

        What goes to a GPU is counted nowhere: it passes through memory in small pieces.
        """
        held = sum(
            piece.memory_bytes(self.sources[piece.table].table)
            for piece in self.slices_of_shard(shard)
        )
        return held + self.layout.cache_of_shard(shard)


def fingerprint(
    name: str, version: int, layout: Layout, sources: Mapping[str, TableSource], index: bytes
) -> str:
    """A digest of all that decides what a slice id means and which bytes it holds.

    `index` is the checkpoint's index file, which has every tensor's place and checksum.
    """
    digest = hashlib.sha256(index)
    tables = sorted(layout.tables.items())
    digest.update(repr((name, version, layout.shards, tables, sorted(sources.items()))).encode())
    return digest.hexdigest()
