"""What a signature became: TensorFlow stages with rounds of lookups between them. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardserve.shards.cut.scorings import AnyLookup


@dataclass(frozen=True)
class StagePlan:
    """A part of the graph to run, from feeds to fetches. Nothing to fetch, nothing to run."""

    feeds: tuple[str, ...]
    fetches: tuple[str, ...]


@dataclass(frozen=True)
class Round:
    """Lookups that need nothing of each other, and the ids stage that makes their operands."""

    stage: StagePlan
    lookups: tuple[AnyLookup, ...]


@dataclass(frozen=True)
class Program:
    """How to answer one signature.

    Start with the inputs' tensors; for each round run its stage, then its lookups, each adding its
    tensors to what is known; then run `dense`. An output alias's tensor is then known under
    `outputs[alias]`. Lookups name their operands by tensors that are known by then.
    """

    inputs: Mapping[str, str]
    rounds: tuple[Round, ...]
    dense: StagePlan
    outputs: Mapping[str, str]

    @property
    def stages(self) -> tuple[StagePlan, ...]:
        """All stages, in order."""
        return (*(one.stage for one in self.rounds), self.dense)
