"""What of a cut model its parts need, where they are all that is run of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tensorflow.core.protobuf import meta_graph_pb2

from shardserve.shards.cut.cut import CutModel
from shardserve.shards.cut.graph import Graph, control_inputs, data_inputs, split
from shardserve.shards.cut.program import Program, StagePlan
from shardserve.shards.cut.regions import CutRegion
from shardserve.shards.cut.variables import Variable


@dataclass(frozen=True)
class Parts:
    """Parts of a model that are run without the rest: regions and signatures by name, loops that
    are steps by node.
    """

    regions: frozenset[str] = frozenset()
    signatures: frozenset[str] = frozenset()
    loops: frozenset[str] = frozenset()

    def __or__(self, other: Parts) -> Parts:
        return Parts(
            self.regions | other.regions,
            self.signatures | other.signatures,
            self.loops | other.loops,
        )


def only(cut: CutModel, parts: Parts) -> CutModel:
    """The model without other signatures than those of `parts`: what these and the init op read of
    its variables, and the regions that they call. None of the parts may call out.
    """
    graph = Graph(cut.graph_def)
    nodes = nodes_run(graph, stages_run(cut, parts))
    if cut.inlined.init_op is not None:
        nodes |= graph.ancestors([cut.inlined.init_op])
    return replace(
        cut,
        inlined=replace(cut.inlined, meta_graph=_with_signatures(cut, parts.signatures)),
        programs={name: cut.programs[name] for name in parts.signatures},
        regions=regions_run(cut, parts),
        call_outs=(),
        variables=read_by(nodes, cut.variables),
        stepped=cut.stepped & parts.signatures,
    )


def stages_run(cut: CutModel, parts: Parts) -> list[StagePlan]:
    """All stages that the parts run, those of regions and loops that they call among them."""
    programs = [
        *_programs(cut, parts.signatures),
        *(one.program for one in regions_run(cut, parts).values()),
    ]
    loops = parts.loops | {name for name in _called(cut, parts) if name in cut.loops.loops}
    steps = [cut.loops.loops[node] for node in sorted(loops)]
    return [
        *(stage for program in programs for stage in program.stages),
        *(StagePlan(step.feeds, step.fetches) for step in steps),
    ]


def regions_run(cut: CutModel, parts: Parts) -> dict[str, CutRegion]:
    """The regions among the parts, and those that parts call."""
    called = [name for name in _called(cut, parts) if name in cut.regions]
    return with_called([*sorted(parts.regions), *called], cut.regions)


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


def nodes_run(graph: Graph, stages: Iterable[StagePlan]) -> set[str]:
    """The nodes between the stages' feeds and their fetches."""
    found: set[str] = set()
    for stage in stages:
        found |= _between(graph, stage)
    return found


def read_by(nodes: Collection[str], variables: Iterable[Variable]) -> tuple[Variable, ...]:
    """The variables that are among the nodes."""
    return tuple(variable for variable in variables if variable.node in nodes)


def _programs(cut: CutModel, signatures: Iterable[str]) -> Iterator[Program]:
    """How each signature is run, all its outputs; one whose loops are stepped, without that too."""
    for name in sorted(signatures):
        outputs = cut.inlined.signatures[name].outputs
        yield cut.program_for(name, outputs)
        if name in cut.stepped:
            yield cut.program_for(name, outputs, whole_loops=True)


def _called(cut: CutModel, parts: Parts) -> list[str]:
    """The regions and loops that signatures call."""
    programs = _programs(cut, parts.signatures)
    return [call.region for p in programs for one in p.rounds for call in one.regions]


def _with_signatures(cut: CutModel, names: Iterable[str]) -> meta_graph_pb2.MetaGraphDef:
    kept = meta_graph_pb2.MetaGraphDef()
    for name in sorted(names):
        kept.signature_def[name].CopyFrom(cut.inlined.signatures[name])
    return kept


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
