"""Regions in a cut model: what a stage calls in place of a part of the graph. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardserve.shards.regions import ActorOptions, Region, RegionPlan

if TYPE_CHECKING:
    from shardserve.shards.cut.program import Program

__all__ = ["ActorOptions", "CutRegion", "Region", "RegionCall", "RegionPlan"]


@dataclass(frozen=True)
class RegionCall:
    """One place of the graph that a region takes: operands in (its inputs, then what it captured),
    outputs out, in the region's order.

    All are tensors of the graph. Several places may call the region named `region`.
    """

    region: str
    operands: tuple[str, ...]
    outputs: tuple[str, ...]

    def with_operands(self, known: Mapping[str, str]) -> RegionCall:
        """The same with its operands under other names."""
        return replace(self, operands=tuple(known[name] for name in self.operands))


@dataclass(frozen=True)
class CutRegion:
    """A region and how to run it.

    The program's inputs are "0", "1", ... in the order of `region.inputs`, then of
    `region.captured`; its outputs in that of `region.outputs`.
    """

    region: Region
    program: Program
