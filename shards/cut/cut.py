"""Cuts a SavedModel: which variables become tables, and what each signature becomes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tensorflow.core.framework import graph_pb2

from shardserve.shards.cut.call_outs import CallOut
from shardserve.shards.cut.calling import with_call_outs
from shardserve.shards.cut.decided import CutRule, CutTable, Decided, WholeVariable, by_output
from shardserve.shards.cut.deciding import Decider
from shardserve.shards.cut.graph import Graph, split
from shardserve.shards.cut.picks import with_separate_outputs
from shardserve.shards.cut.program import Program
from shardserve.shards.cut.rewrite import pruned_to, without_tables
from shardserve.shards.cut.saved_model import InlinedModel, inline
from shardserve.shards.cut.scorings import AnyLookup, Scoring, outputs_of
from shardserve.shards.cut.stages import plan_program
from shardserve.shards.cut.variables import Variable

__all__ = ["CutModel", "CutRule", "CutTable", "WholeVariable", "cut_saved_model"]


@dataclass(frozen=True)
class CutModel:
    """A SavedModel after the cut.

    `graph_def` holds what the stages run. `variables` are the variable nodes left in it, which the
    router restores. `programs` has one program for each signature. A node that calls out says in
    its token which of `call_outs` it is.
    """

    inlined: InlinedModel
    tables: Mapping[str, CutTable]
    whole: tuple[WholeVariable, ...]
    programs: Mapping[str, Program]
    variables: tuple[Variable, ...]
    call_outs: tuple[CallOut, ...]
    graph_def: graph_pb2.GraphDef = field(repr=False)

    def program_for(self, signature: str, outputs: Collection[str]) -> Program:
        """The program that answers only some of a signature's outputs, by alias.

        It makes only the lookups that those outputs need.
        """
        definition = self.inlined.signatures[signature]
        return plan_program(
            self._graph,
            {alias: info.name for alias, info in definition.inputs.items()},
            {alias: definition.outputs[alias].name for alias in outputs},
            self._lookups,
        )

    @cached_property
    def _graph(self) -> Graph:
        return Graph(self.graph_def)

    @cached_property
    def _lookups(self) -> dict[str, AnyLookup]:
        return by_output(self.tables)


def cut_saved_model(directory: Path, rule: CutRule, tags: tuple[str, ...] = ("serve",)) -> CutModel:
    """Cut the SavedModel in `directory` (the one that holds `saved_model.pb`).

    Reads no variable. Raises NotFound, DataLoss or InvalidArgument naming the file for a model
    that cannot be read, and InvalidArgument naming the table for one that the rule names and that
    is not there or cannot be cut.
    """
    # Each of these graphs is large, and let go of as soon as there is the next.
    decided, graph_def = Decider(*inline(directory, tags), rule).decide()
    table_dtypes = {name: cut.table.dtype for name, cut in decided.tables.items()}
    lookups = decided.lookups
    dtypes = {t: _dtype(lookup, t, table_dtypes[lookup.table]) for t, lookup in lookups.items()}
    graph_def = with_call_outs(
        graph_def, decided.call_outs, decided.shapes_inside, decided.cut_nodes, table_dtypes
    )
    graph_def = with_separate_outputs(graph_def, lookups.values(), table_dtypes)
    graph_def = without_tables(graph_def, dtypes, decided.shapes, decided.cut_nodes)
    return _assembled(decided, graph_def)


def _assembled(decided: Decided, without: graph_pb2.GraphDef) -> CutModel:
    lookups = decided.lookups
    graph = Graph(without)
    programs = {
        name: plan_program(
            graph,
            {alias: info.name for alias, info in signature.inputs.items()},
            {alias: info.name for alias, info in signature.outputs.items()},
            lookups,
        )
        for name, signature in decided.model.signatures.items()
    }
    graph_def = pruned_to(without, _roots(decided.model, lookups.values()))
    left = {node.name for node in graph_def.node}
    return CutModel(
        inlined=decided.model,
        tables=decided.tables,
        whole=decided.whole,
        programs=programs,
        variables=tuple(v for v in decided.variables if v.node in left),
        call_outs=decided.call_outs,
        graph_def=graph_def,
    )


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
