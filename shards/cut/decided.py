"""What the cut decides about a model's variables. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardserve.shards.cut.call_outs import AskedShape, CallOut
from shardserve.shards.cut.partitioned import Strategy
from shardserve.shards.cut.region_cut import GatedRegions
from shardserve.shards.cut.saved_model import InlinedModel
from shardserve.shards.cut.scorings import AnyLookup, outputs_of
from shardserve.shards.cut.stored import StoredRows
from shardserve.shards.cut.variables import Variable
from shardserve.shards.model import DEFAULT_THRESHOLD
from shardserve.shards.tables import Table


@dataclass(frozen=True)
class CutRule:
    """Which variables to cut: those of at least `threshold` bytes, and those named in `always`.

    `only`, where it is set, names the tables to cut and overrides both: a layout knows its tables.
    """

    threshold: int = DEFAULT_THRESHOLD
    always: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    only: frozenset[str] | None = None

    def wants(self, name: str, nbytes: int) -> bool:
        """Whether the variable is to be cut, if it can be."""
        if self.only is not None:
            return name in self.only
        return name not in self.never and (name in self.always or nbytes >= self.threshold)

    @property
    def named(self) -> frozenset[str]:
        """The names that must exist and must be cuttable."""
        return self.always if self.only is None else self.only


@dataclass(frozen=True)
class CutTable:
    """A variable that became a table, where the checkpoint has it, and all lookups that read it.

    `call_outs` are lookups that running graphs make themselves. Or several variables, which the
    graph partitions ids over by `strategy`. `note` says why a variable that looks like one of
    several is a table of its own.
    """

    table: Table
    stored: tuple[StoredRows, ...]
    lookups: tuple[AnyLookup, ...]
    strategy: Strategy | None = None
    note: str = ""
    call_outs: tuple[CallOut, ...] = ()

    @property
    def all_lookups(self) -> tuple[AnyLookup, ...]:
        """Those of rounds, and those called out."""
        return (*self.lookups, *(one.lookup for one in self.call_outs))


@dataclass(frozen=True)
class WholeVariable:
    """A variable that stays in the router, and why."""

    name: str
    key: str
    dtype: str
    shape: tuple[int, ...] | None
    nbytes: int
    reason: str


@dataclass(frozen=True)
class Decided:
    """What is cut and what is not.

    `shapes` has the value of each tensor that asks for a table's shape, `shapes_inside` of those in
    loops and branches; `cut_nodes` are the cut variables' nodes.
    """

    model: InlinedModel
    tables: Mapping[str, CutTable]
    whole: tuple[WholeVariable, ...]
    variables: tuple[Variable, ...]
    shapes: Mapping[str, tuple[int, ...]]
    shapes_inside: Mapping[AskedShape, tuple[int, ...]]
    cut_nodes: frozenset[str]
    gated: GatedRegions

    @property
    def call_outs(self) -> tuple[CallOut, ...]:
        """All call-outs, numbered as the graph's nodes are."""
        return tuple(one for cut in self.tables.values() for one in cut.call_outs)

    @property
    def lookups(self) -> dict[str, AnyLookup]:
        """All lookups, by each tensor that they make known."""
        return by_output(self.tables)


def by_output(tables: Mapping[str, CutTable]) -> dict[str, AnyLookup]:
    """Every lookup, by each tensor that it makes known."""
    return {t: one for cut in tables.values() for one in cut.lookups for t in outputs_of(one)}
