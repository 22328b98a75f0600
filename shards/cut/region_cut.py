"""Finds all regions of a model, marked and named, and gates them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tensorflow.core.framework import graph_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.cut.enclosed import Ends, side_inputs
from shardserve.shards.cut.gates import Gated, Gating
from shardserve.shards.cut.graph import Graph, data_inputs, split, tensor
from shardserve.shards.cut.marks import MarkedRegion
from shardserve.shards.cut.regions import Region, RegionCall
from shardserve.shards.cut.saved_model import InlinedModel

#: Names that come close, in the error for a tensor that there is not.
_SIMILAR = 3


@dataclass(frozen=True)
class GatedRegion:
    """A region in the gated graph.

    `entries` are the gates that its program is fed, `values` the tensors that it fetches. `calls`
    are the places where it is called.
    """

    region: Region
    entries: tuple[str, ...]
    values: tuple[str, ...]
    calls: tuple[RegionCall, ...]


@dataclass(frozen=True)
class GatedRegions:
    """All regions of a model, by name; `moved` says where outputs of the graph went."""

    regions: Mapping[str, GatedRegion] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)

    @property
    def by_output(self) -> dict[str, RegionCall]:
        """Every place where a region is called, by each tensor that it makes known."""
        calls = [call for region in self.regions.values() for call in region.calls]
        return {output: call for call in calls for output in call.outputs}

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor that is fed or fetched to run a region."""
        ends = [t for one in self.regions.values() for t in (*one.entries, *one.values)]
        return (*ends, *(t for c in self.by_output.values() for t in (*c.operands, *c.outputs)))

    def outside(self, name: str) -> str:
        """The tensor that has the value of an output of the graph, for what is in no region."""
        return self.moved.get(tensor(name), name)


def gate_regions(
    graph_def: graph_pb2.GraphDef, model: InlinedModel, named: Sequence[Region]
) -> GatedRegions:
    """Gate the regions that the model marks and those that are `named`, in place.

    Raises InvalidArgument naming the region for a tensor that the graph does not have, a region
    that is not closed, and two that overlap.
    """
    if not model.marked and not named:
        return GatedRegions()
    wanted = [i.name for s in model.signatures.values() for i in s.outputs.values()]
    gating = Gating(graph_def, [tensor(name) for name in wanted])
    found: dict[str, Gated] = {}
    regions: dict[str, Region] = {}
    likeness: dict[str, Hashable] = {}
    for mark in model.marked:
        graph = Graph(graph_def)
        if not _is_live(graph, mark, gating, wanted):
            continue
        region = _marked_region(graph, mark)
        likeness[mark.name] = mark.likeness
        _add(region, gating, found, likeness)
        regions[mark.name] = region
    for region in named:
        if region.name in regions:
            raise InvalidArgument(f"region {region.name!r}: the model has one of that name")
        region = _resolved(Graph(graph_def), model, region)
        _add(region, gating, found, likeness)
        regions[region.name] = region
    return GatedRegions(_together(Graph(graph_def), regions, found, likeness), gating.moved)


def _is_live(graph: Graph, mark: MarkedRegion, gating: Gating, wanted: Collection[str]) -> bool:
    needed = graph.ancestors([gating.moved.get(tensor(name), name) for name in wanted])
    return any(split(output)[0] in needed for output in mark.outputs)


def _marked_region(graph: Graph, mark: MarkedRegion) -> Region:
    """A marked region, with the tensors past its inputs as captured."""
    ends = Ends(mark.name, mark.inputs, (), mark.outputs)
    return Region(
        mark.name, mark.inputs, mark.outputs, mark.batching, captured=side_inputs(graph, ends)
    )


def _add(region: Region, gating: Gating, found: dict[str, Gated], marked: Collection[str]) -> None:
    ends = Ends(
        region.name,
        region.inputs,
        region.captured,
        region.outputs,
        is_named=region.name not in marked,
    )
    gated = gating.gate(gating.outside(ends))
    for name, other in found.items():
        shared = gated.nodes & other.nodes
        is_nested = gated.nodes >= other.nodes or gated.nodes <= other.nodes
        # A named region may hold marked ones, and marked ones each other.
        if shared and not (is_nested and name in marked):
            raise InvalidArgument(
                f"regions {name!r} and {region.name!r} overlap: {min(shared)} is in both"
            )
    found[region.name] = gated


def _together(
    graph: Graph,
    regions: Mapping[str, Region],
    found: Mapping[str, Gated],
    likeness: Mapping[str, Hashable],
) -> dict[str, GatedRegion]:
    """The regions with their calls; those that do the same are one with several calls."""
    made: dict[str, GatedRegion] = {}
    first: dict[Hashable, str] = {}
    for name, gated in found.items():
        like = likeness.get(name)
        # What was captured from the caller is the caller's own.
        same = name if like is None or gated.ends.captured else first.setdefault(like, name)
        call = RegionCall(same, _sources(graph, gated.entries), gated.outputs)
        if same == name:
            values = _sources(graph, gated.outputs)
            made[name] = GatedRegion(regions[name], gated.entries, values, (call,))
        else:
            made[same] = replace(made[same], calls=(*made[same].calls, call))
    return made


def _sources(graph: Graph, gates: Collection[str]) -> tuple[str, ...]:
    """What the gates pass on."""
    return tuple(data_inputs(graph.node(gate))[0] for gate in gates)


def _resolved(graph: Graph, model: InlinedModel, region: Region) -> Region:
    """The region by tensors of the graph, where it was named by aliases of a signature."""
    inputs = {a: i.name for s in model.signatures.values() for a, i in s.inputs.items()}
    outputs = {a: i.name for s in model.signatures.values() for a, i in s.outputs.items()}
    return replace(
        region,
        inputs=tuple(_tensor(graph, region, name, inputs) for name in region.inputs),
        # One node often passes on all of a function's outputs.
        outputs=tuple(
            graph.resolve(_tensor(graph, region, name, outputs)) for name in region.outputs
        ),
    )


def _tensor(graph: Graph, region: Region, name: str, aliases: Mapping[str, str]) -> str:
    for candidate in (name, aliases.get(name, name)):
        node, _, slot = candidate.partition(":")
        if node in graph.nodes and (not slot or slot.isdecimal()):
            return tensor(candidate)
    known = [*aliases, *(tensor(node) for node in graph.nodes)]
    ends = [one for one in known if one.removesuffix(":0").endswith(f"/{tensor(name)[:-2]}")]
    close = (ends or difflib.get_close_matches(name, known))[:_SIMILAR]
    hint = f"; there is {' and '.join(close)}" if close else ""
    raise InvalidArgument(f"region {region.name!r}: the model has no tensor {name!r}{hint}")
