"""Cuts a SavedModel: which variables become tables, and what each signature becomes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tensorflow.core.framework import graph_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.memory import collections_paused
from shardserve.shards.cut.call_outs import CallOut
from shardserve.shards.cut.calling import add_call_outs
from shardserve.shards.cut.constants import share_constants
from shardserve.shards.cut.decided import CutRule, CutTable, Decided, WholeVariable, by_output
from shardserve.shards.cut.deciding import Decider
from shardserve.shards.cut.graph import Graph, split
from shardserve.shards.cut.kept_graph import KeptGraph
from shardserve.shards.cut.loops import LiftedLoops, StepLoop
from shardserve.shards.cut.picks import separate_outputs
from shardserve.shards.cut.program import Program
from shardserve.shards.cut.region_cut import GatedRegions, gate_regions
from shardserve.shards.cut.regions import CutRegion, Region, RegionCall
from shardserve.shards.cut.rewrite import prune, take_out_tables
from shardserve.shards.cut.row_wise import RowWise
from shardserve.shards.cut.saved_model import InlinedModel, inline
from shardserve.shards.cut.scorings import AnyCall, AnyLookup, Scoring, outputs_of
from shardserve.shards.cut.shapes import ShapedGraph
from shardserve.shards.cut.stages import plan_program
from shardserve.shards.cut.step_loops import lift_loops
from shardserve.shards.cut.variables import Variable

__all__ = ["CutModel", "CutRule", "CutTable", "WholeVariable", "cut_saved_model"]


@dataclass(frozen=True)
class CutModel:
    """A SavedModel after the cut.

    `graph` holds what the stages run. `variables` are the variable nodes left in it, which the
    router restores. `programs` has one program for each signature, `regions` the regions that these
    and other regions call, by name. A node that calls out says in its token which of `call_outs` it
    is.
    """

    inlined: InlinedModel
    tables: Mapping[str, CutTable]
    whole: tuple[WholeVariable, ...]
    programs: Mapping[str, Program]
    regions: Mapping[str, CutRegion]
    gated: GatedRegions
    variables: tuple[Variable, ...]
    call_outs: tuple[CallOut, ...]
    graph: KeptGraph = field(repr=False)
    loops: LiftedLoops = field(default_factory=LiftedLoops)
    stepped: frozenset[str] = frozenset()

    @property
    def graph_def(self) -> graph_pb2.GraphDef:
        """See `KeptGraph.graph_def`."""
        return self.graph.graph_def

    def pack(self) -> None:
        """Keep the graph packed until it is needed again, and no index over it."""
        self.graph.pack()
        for name in ("_graph", "_row_wise"):
            vars(self).pop(name, None)

    def program_for(
        self, signature: str, outputs: Collection[str], *, whole_loops: bool = False
    ) -> Program:
        """The program that answers only some of a signature's outputs, by alias.

        It makes only the lookups that those outputs need. Of a `stepped` signature it calls the
        `loops` that could be lifted, but with `whole_loops`.
        """
        definition = self.inlined.signatures[signature]
        if not self.stepped and set(outputs) == set(definition.outputs):
            return self.programs[signature]
        return plan_program(
            self._graph,
            {alias: info.name for alias, info in definition.inputs.items()},
            {alias: self.gated.outside(definition.outputs[alias].name) for alias in outputs},
            self._calls if whole_loops or signature not in self.stepped else self._stepped_calls,
        )

    def stepping(self, signatures: Collection[str]) -> CutModel:
        """The same model, in which the loops of these signatures are stepped, if they can be.

        Raises InvalidArgument for a signature that there is not.
        """
        if not signatures:
            return self
        self.check_signatures(signatures)
        outputs = [
            self.gated.outside(info.name)
            for name in signatures
            for info in self.inlined.signatures[name].outputs.values()
        ]
        graph_def = graph_pb2.GraphDef()
        graph_def.CopyFrom(self.graph_def)
        loops = lift_loops(graph_def, outputs)
        return replace(self, graph=KeptGraph(graph_def), loops=loops, stepped=frozenset(signatures))

    def check_signatures(self, names: Collection[str]) -> None:
        """Raise InvalidArgument for one whose loops shall be stepped, and that there is not."""
        for name in names:
            if name not in self.inlined.signatures:
                known = ", ".join(sorted(self.inlined.signatures))
                raise InvalidArgument(
                    f"loops.{name}: the model has no such signature; it has: {known}"
                )

    def loop_calls(self, signature: str) -> tuple[RegionCall, ...]:
        """The calls of lifted loops that a signature makes for all its outputs."""
        program = self.program_for(signature, self.inlined.signatures[signature].outputs)
        calls = [call for one in program.rounds for call in one.regions]
        return tuple(call for call in calls if call.region in self.loops.loops)

    def stepped_loops(self) -> Iterator[tuple[str, StepLoop]]:
        """Each lifted loop once, with the first signature that steps it."""
        seen: set[str] = set()
        for name in sorted(self.stepped):
            for call in self.loop_calls(name):
                if call.region not in seen:
                    seen.add(call.region)
                    yield name, self.loops.loops[call.region]

    def why_not_joined(self, tensors: Iterable[str]) -> tuple[str, ...]:
        """Why a stage between these tensors cannot run joined requests as one; nothing if it can.

        Inputs of signatures are taken to have a row for each example.
        """
        reasons = (self._row_wise.why_not(name) for name in tensors)
        return tuple(dict.fromkeys(reason for reason in reasons if reason is not None))

    @cached_property
    def _row_wise(self) -> RowWise:
        inputs = [i.name for s in self.inlined.signatures.values() for i in s.inputs.values()]
        return RowWise(ShapedGraph(self.graph_def, ()), inputs, self._calls)

    @cached_property
    def _graph(self) -> Graph:
        return Graph(self.graph_def)

    @cached_property
    def _calls(self) -> dict[str, AnyCall]:
        return {**by_output(self.tables), **self.gated.by_output}

    @cached_property
    def _stepped_calls(self) -> dict[str, AnyCall]:
        return {**self._calls, **self.loops.calls}


@collections_paused()
def cut_saved_model(
    directory: Path,
    rule: CutRule,
    tags: tuple[str, ...] = ("serve",),
    regions: Sequence[Region] = (),
) -> CutModel:
    """Cut the SavedModel in `directory` (the one that holds `saved_model.pb`).

    `regions` are the operator's; those that the model marks come besides. Reads no variable. Raises
    NotFound, DataLoss or InvalidArgument naming the file for a model that cannot be read,
    InvalidArgument naming the table for one that the rule names and that is not there or cannot be
    cut, and InvalidArgument naming the region for one that is not closed.
    """
    model, graph_def = inline(directory, tags)
    # The graph is large: from here on there is only one, which each step changes in place.
    gated = gate_regions(graph_def, model, regions)
    decided = Decider(model, graph_def, rule, gated).decide()
    table_dtypes = {name: cut.table.dtype for name, cut in decided.tables.items()}
    lookups = decided.lookups
    dtypes = {t: _dtype(lookup, t, table_dtypes[lookup.table]) for t, lookup in lookups.items()}
    add_call_outs(
        graph_def, decided.call_outs, decided.shapes_inside, decided.cut_nodes, table_dtypes
    )
    separate_outputs(graph_def, lookups.values(), table_dtypes)
    take_out_tables(graph_def, dtypes, decided.shapes, decided.cut_nodes)
    return _assembled(decided, graph_def)


def _assembled(decided: Decided, graph_def: graph_pb2.GraphDef) -> CutModel:
    lookups, gated = decided.lookups, decided.gated
    calls: dict[str, AnyCall] = {**lookups, **gated.by_output}
    share_constants(graph_def)
    graph = Graph(graph_def)
    programs = {
        name: plan_program(
            graph,
            {alias: info.name for alias, info in signature.inputs.items()},
            {alias: gated.outside(info.name) for alias, info in signature.outputs.items()},
            calls,
        )
        for name, signature in decided.model.signatures.items()
    }
    regions = {
        name: CutRegion(
            one.region, plan_program(graph, _numbered(one.entries), _numbered(one.values), calls)
        )
        for name, one in gated.regions.items()
    }
    prune(graph_def, [*_roots(decided.model, lookups.values()), *gated.tensors])
    left = {node.name for node in graph_def.node}
    return CutModel(
        inlined=decided.model,
        tables=decided.tables,
        whole=decided.whole,
        programs=programs,
        regions=regions,
        gated=gated,
        variables=tuple(v for v in decided.variables if v.node in left),
        call_outs=decided.call_outs,
        graph=KeptGraph(graph_def),
    )


def _numbered(tensors: Iterable[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(tensors)}


def _dtype(lookup: AnyLookup, output: str, table_dtype: str) -> str:
    if isinstance(lookup, Scoring):
        return lookup.output_dtypes(table_dtype)[output]
    return table_dtype


def _roots(model: InlinedModel, lookups: Iterable[AnyLookup]) -> list[str]:
    """Every tensor that a program may feed or fetch, and what loading needs."""
    roots = [*model.assets]
    if model.init_op is not None:
        roots.append(model.init_op)
    for signature in model.signatures.values():
        roots.extend(i.name for i in (*signature.inputs.values(), *signature.outputs.values()))
    for lookup in lookups:
        roots.extend((*outputs_of(lookup), *lookup.operands))
    return sorted({split(name)[0] for name in roots})
