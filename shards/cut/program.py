"""What a signature became: TensorFlow stages with rounds of lookups between them. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardserve.shards.cut.regions import RegionCall
from shardserve.shards.cut.scorings import AnyLookup


@dataclass(frozen=True)
class StagePlan:
    """A part of the graph to run, from feeds to fetches. Nothing to fetch, nothing to run."""

    feeds: tuple[str, ...]
    fetches: tuple[str, ...]


@dataclass(frozen=True)
class Round:
    """Lookups and regions that need nothing of each other, and the stage before them.

    The stage, an ids stage, makes their operands.
    """

    stage: StagePlan
    lookups: tuple[AnyLookup, ...]
    regions: tuple[RegionCall, ...] = ()


@dataclass(frozen=True)
class Program:
    """How to answer one signature, or what a region does.

    Start with the inputs' tensors; for each round run its stage, then its lookups and regions, each
    adding its tensors to what is known; then run `dense`. An output alias's tensor is then known
    under `outputs[alias]`. Operands are named by tensors that are known by then.
    """

    inputs: Mapping[str, str]
    rounds: tuple[Round, ...]
    dense: StagePlan
    outputs: Mapping[str, str]

    @property
    def stages(self) -> tuple[StagePlan, ...]:
        """All stages, in order."""
        return (*(one.stage for one in self.rounds), self.dense)
