"""Cuts a SavedModel: which variables become tables, and what each signature becomes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tensorflow.core.framework import graph_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.cut.graph import Graph, split, tensor
from shardserve.shards.cut.motifs import MotifFinder, TableNode, Uses
from shardserve.shards.cut.picks import with_separate_outputs
from shardserve.shards.cut.program import Program
from shardserve.shards.cut.rewrite import pruned_to, without_tables
from shardserve.shards.cut.saved_model import InlinedModel, inline
from shardserve.shards.cut.scorings import AnyLookup, Scoring, hidden_layer, outputs_of
from shardserve.shards.cut.shapes import ShapedGraph
from shardserve.shards.cut.stages import plan_program
from shardserve.shards.cut.variables import (
    Variable,
    handle_tensor,
    named_by_key,
    restored_variables,
)
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
    """A variable that became a table, its checkpoint key, and all lookups that read it."""

    table: Table
    key: str
    lookups: tuple[AnyLookup, ...]


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
class CutModel:
    """A SavedModel after the cut.

    `graph_def` holds what the stages run. `variables` are the variable nodes left in it, which the
    router restores. `programs` has one program for each signature.
    """

    inlined: InlinedModel
    tables: Mapping[str, CutTable]
    whole: tuple[WholeVariable, ...]
    programs: Mapping[str, Program]
    variables: tuple[Variable, ...]
    graph_def: graph_pb2.GraphDef = field(repr=False)

    def program_for(self, signature: str, outputs: Collection[str]) -> Program:
        """The program that answers only some of a signature's outputs, by alias.

        It makes only the lookups that those outputs need.
        """
        definition = self.inlined.signatures[signature]
        lookups = _by_output(self.tables)
        return plan_program(
            Graph(self.graph_def),
            {alias: info.name for alias, info in definition.inputs.items()},
            {alias: definition.outputs[alias].name for alias in outputs},
            lookups,
        )


def cut_saved_model(directory: Path, rule: CutRule, tags: tuple[str, ...] = ("serve",)) -> CutModel:
    """Cut the SavedModel in `directory` (the one that holds `saved_model.pb`).

    Reads no variable. Raises NotFound, DataLoss or InvalidArgument naming the file for a model
    that cannot be read, and InvalidArgument naming the table for one that the rule names and that
    is not there or cannot be cut.
    """
    return _Cutter(inline(directory, tags), rule).cut()


class _Cutter:
    def __init__(self, model: InlinedModel, rule: CutRule) -> None:
        self._model = model
        self._rule = rule
        outputs = [i.name for s in model.signatures.values() for i in s.outputs.values()]
        self._graph_def = _cleaned(model)
        self._graph = ShapedGraph(self._graph_def, outputs)
        self._live = self._graph.ancestors(self._graph.outputs)
        self._variables = restored_variables(Graph(model.graph_def), model.restore_op)
        self._names = named_by_key(self._variables)
        self._uses: dict[str, Uses] = {}
        self._tables: dict[str, CutTable] = {}
        self._whole: list[WholeVariable] = []

    def cut(self) -> CutModel:
        groups = self._groups()
        self._check_named(groups)
        finder = MotifFinder(self._graph, self._live)
        for name, variables in groups.items():
            self._decide(finder, name, variables)
        lookups = _by_output(self._tables)
        graph_def = self._rewritten(groups, lookups)
        programs = self._programs(Graph(graph_def), lookups)
        graph_def = pruned_to(graph_def, _roots(self._model, lookups.values()))
        left = {node.name for node in graph_def.node}
        return CutModel(
            inlined=self._model,
            tables=self._tables,
            whole=tuple(self._whole),
            programs=programs,
            variables=tuple(v for v in self._variables.values() if v.node in left),
            graph_def=graph_def,
        )

    def _groups(self) -> dict[str, list[Variable]]:
        """The live variables by name; the nodes of one checkpoint key together."""
        groups: dict[str, list[Variable]] = {}
        for variable in self._variables.values():
            if variable.node in self._live:
                groups.setdefault(self._names[variable.key], []).append(variable)
        return dict(sorted(groups.items()))

    def _check_named(self, groups: Mapping[str, list[Variable]]) -> None:
        for name in sorted(self._rule.named - groups.keys()):
            known = ", ".join(groups) or "none"
            raise InvalidArgument(
                f"table {name!r} is not a variable that a signature of "
                f"{self._model.directory} reads; those are: {known}"
            )

    def _decide(self, finder: MotifFinder, name: str, variables: list[Variable]) -> None:
        first = variables[0]
        reason = self._reason_to_keep(name, first)
        if reason is None and first.shape is not None:
            node = TableNode(name, first.dtype, first.shape)
            found = [finder.uses(handle_tensor(v), node, is_ref=v.is_ref) for v in variables]
            uses = Uses(
                lookups=tuple(lookup for use in found for lookup in use.lookups),
                shapes=tuple(shape for use in found for shape in use.shapes),
                reasons=tuple(why for use in found for why in use.reasons),
            )
            hidden = None
            if uses.lookups and name not in self._rule.named:
                hidden = hidden_layer(uses.lookups, first.shape)
            if uses.lookups and not uses.reasons and not hidden:
                table = Table(name, first.dtype, first.shape[0], first.shape[1:])
                self._tables[name] = CutTable(table, first.key, uses.lookups)
                self._uses[name] = uses
                return
            reason = "; ".join(uses.reasons) or hidden or "no lookup reads it"
        assert reason is not None
        if name in self._rule.named:
            raise InvalidArgument(f"table {name!r} cannot be cut: {reason}")
        self._whole.append(
            WholeVariable(name, first.key, first.dtype, first.shape, first.nbytes, reason)
        )

    def _reason_to_keep(self, name: str, variable: Variable) -> str | None:
        if variable.slice_spec:
            return f"it is restored as a slice ({variable.slice_spec!r}) of {variable.key!r}"
        if variable.shape is None:
            return "its shape is not known from the graph"
        if not variable.shape or not variable.nbytes:
            return "it is a scalar, or its values are not numbers"
        if not self._rule.wants(name, variable.nbytes):
            return "below the threshold, or not named in the layout"
        return None

    def _rewritten(
        self, groups: Mapping[str, list[Variable]], lookups: Mapping[str, AnyLookup]
    ) -> graph_pb2.GraphDef:
        shapes = {
            tensor_name: (cut.table.rows, *cut.table.row_shape)
            for name, cut in self._tables.items()
            for tensor_name in self._uses[name].shapes
        }
        dtypes = {name: cut.table.dtype for name, cut in self._tables.items()}
        outputs = {t: _dtype(lookup, t, dtypes[lookup.table]) for t, lookup in lookups.items()}
        nodes = [v.node for name in self._tables for v in groups[name]]
        graph_def = with_separate_outputs(self._graph_def, lookups.values(), dtypes)
        return without_tables(graph_def, outputs, shapes, nodes)

    def _programs(self, graph: Graph, lookups: Mapping[str, AnyLookup]) -> dict[str, Program]:
        return {
            name: plan_program(
                graph,
                {alias: info.name for alias, info in signature.inputs.items()},
                {alias: info.name for alias, info in signature.outputs.items()},
                lookups,
            )
            for name, signature in self._model.signatures.items()
        }


def _cleaned(model: InlinedModel) -> graph_pb2.GraphDef:
    """What the signatures and the init op need; saving and restoring do not."""
    outputs = [i.name for s in model.signatures.values() for i in s.outputs.values()]
    inputs = [i.name for s in model.signatures.values() for i in s.inputs.values()]
    roots = [*outputs, *inputs, *model.assets]
    if model.init_op is not None:
        roots.append(model.init_op)
    return pruned_to(model.graph_def, [tensor(name) for name in roots])


def _by_output(tables: Mapping[str, CutTable]) -> dict[str, AnyLookup]:
    """Every lookup, by each tensor that it makes known."""
    return {t: one for cut in tables.values() for one in cut.lookups for t in outputs_of(one)}


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
