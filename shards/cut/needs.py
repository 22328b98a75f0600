"""What of a cut model its regions need, where they are all that is run of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from tensorflow.core.protobuf import meta_graph_pb2

from shardserve.shards.cut.cut import CutModel
from shardserve.shards.cut.graph import Graph, control_inputs, data_inputs, split
from shardserve.shards.cut.program import Program, StagePlan
from shardserve.shards.cut.regions import CutRegion
from shardserve.shards.cut.variables import Variable


def only_regions(cut: CutModel, names: Iterable[str]) -> CutModel:
    """The model without signatures: the regions of these names, those that they call, and the
    variables that these and the init op read. None of the regions may call out.
    """
    regions = with_called(names, cut.regions)
    graph = Graph(cut.graph_def)
    nodes = nodes_run(graph, [one.program for one in regions.values()])
    if cut.inlined.init_op is not None:
        nodes |= graph.ancestors([cut.inlined.init_op])
    return replace(
        cut,
        inlined=replace(cut.inlined, meta_graph=meta_graph_pb2.MetaGraphDef()),
        programs={},
        regions=regions,
        call_outs=(),
        variables=read_by(nodes, cut.variables),
    )


def with_called(names: Iterable[str], regions: Mapping[str, CutRegion]) -> dict[str, CutRegion]:
    """The regions of these names, and those that they call, at any depth."""
    found: dict[str, CutRegion] = {}
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = regions[name]
            pending.extend(call.region for r in regions[name].program.rounds for call in r.regions)
    return found


def nodes_run(graph: Graph, programs: Iterable[Program]) -> set[str]:
    """The nodes that the programs' stages run; none of what the regions do that they call."""
    found: set[str] = set()
    for program in programs:
        for stage in program.stages:
            found |= _between(graph, stage)
    return found


def read_by(nodes: Collection[str], variables: Iterable[Variable]) -> tuple[Variable, ...]:
    """The variables that are among the nodes."""
    return tuple(variable for variable in variables if variable.node in nodes)


def _between(graph: Graph, stage: StagePlan) -> set[str]:
    feeds = frozenset(stage.feeds)
    found: set[str] = set()
    pending = [split(name)[0] for name in stage.fetches if name not in feeds]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        node = graph.nodes[name]
        pending.extend(split(source)[0] for source in data_inputs(node) if source not in feeds)
        pending.extend(control_inputs(node))
    return found
