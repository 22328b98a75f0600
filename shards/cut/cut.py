"""Cuts a SavedModel: which variables become tables, and what each signature becomes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tensorflow.core.framework import graph_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.cut.graph import Graph, split, tensor
from shardserve.shards.cut.loops import LiftedLoops
from shardserve.shards.cut.motifs import MotifFinder, TableNode, Uses
from shardserve.shards.cut.partitioned import PartitionedTable, Strategy, find_partitioned
from shardserve.shards.cut.picks import with_separate_outputs
from shardserve.shards.cut.program import Program
from shardserve.shards.cut.region_cut import GatedRegions, gate_regions
from shardserve.shards.cut.regions import CutRegion, Region, RegionCall
from shardserve.shards.cut.rewrite import pruned_to, without_tables
from shardserve.shards.cut.row_wise import RowWise
from shardserve.shards.cut.saved_model import InlinedModel, inline
from shardserve.shards.cut.scorings import AnyCall, AnyLookup, Scoring, hidden_layer, outputs_of
from shardserve.shards.cut.shapes import ShapedGraph
from shardserve.shards.cut.stages import plan_program
from shardserve.shards.cut.step_loops import lift_loops
from shardserve.shards.cut.stored import StoredRows, stored_rows
from shardserve.shards.cut.variables import Variable, handle_tensor, named, restored_variables
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

    Or several variables, which the graph partitions ids over by `strategy`. `note` says why a
    variable that looks like one of several is a table of its own.
    """

    table: Table
    stored: tuple[StoredRows, ...]
    lookups: tuple[AnyLookup, ...]
    strategy: Strategy | None = None
    note: str = ""


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
    router restores. `programs` has one program for each signature, `regions` the regions that these
    and other regions call, by name.
    """

    inlined: InlinedModel
    tables: Mapping[str, CutTable]
    whole: tuple[WholeVariable, ...]
    programs: Mapping[str, Program]
    regions: Mapping[str, CutRegion]
    variables: tuple[Variable, ...]
    gated: GatedRegions
    graph_def: graph_pb2.GraphDef = field(repr=False)
    loops: LiftedLoops = field(default_factory=LiftedLoops)
    stepped: frozenset[str] = frozenset()

    def program_for(
        self, signature: str, outputs: Collection[str], *, whole_loops: bool = False
    ) -> Program:
        """The program that answers only some of a signature's outputs, by alias.

        It makes only the lookups that those outputs need. Of a `stepped` signature it calls the
        `loops` that could be lifted, but with `whole_loops`.
        """
        definition = self.inlined.signatures[signature]
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
        return replace(self, graph_def=graph_def, loops=loops, stepped=frozenset(signatures))

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
        return {**_by_output(self.tables), **self.gated.by_output}

    @cached_property
    def _stepped_calls(self) -> dict[str, AnyCall]:
        return {**self._calls, **self.loops.calls}


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
    # Each of these graphs is large, and let go of as soon as there is the next.
    decided, graph_def = _decided(*inline(directory, tags), rule, regions)
    table_dtypes = {name: cut.table.dtype for name, cut in decided.tables.items()}
    lookups = decided.lookups
    dtypes = {t: _dtype(lookup, t, table_dtypes[lookup.table]) for t, lookup in lookups.items()}
    graph_def = with_separate_outputs(graph_def, lookups.values(), table_dtypes)
    graph_def = without_tables(graph_def, dtypes, decided.shapes, decided.cut_nodes)
    return _assembled(decided, graph_def)


def _decided(
    model: InlinedModel, graph_def: graph_pb2.GraphDef, rule: CutRule, regions: Sequence[Region]
) -> tuple[_Decided, graph_pb2.GraphDef]:
    gated = gate_regions(graph_def, model, regions)
    return _Cutter(model, graph_def, rule, gated).decide()


@dataclass(frozen=True)
class _Decided:
    """What is cut and what is not.

    `shapes` has the value of each tensor that asks for a table's shape; `cut_nodes` are the cut
    variables' nodes.
    """

    model: InlinedModel
    tables: Mapping[str, CutTable]
    whole: tuple[WholeVariable, ...]
    variables: tuple[Variable, ...]
    shapes: Mapping[str, tuple[int, ...]]
    cut_nodes: frozenset[str]
    gated: GatedRegions

    @property
    def lookups(self) -> dict[str, AnyLookup]:
        """All lookups, by each tensor that they make known."""
        return _by_output(self.tables)


def _assembled(decided: _Decided, without: graph_pb2.GraphDef) -> CutModel:
    lookups, gated = decided.lookups, decided.gated
    calls: dict[str, AnyCall] = {**lookups, **gated.by_output}
    graph = Graph(without)
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
            one.region,
            plan_program(graph, _numbered(one.entries), _numbered(one.values), calls),
        )
        for name, one in gated.regions.items()
    }
    graph_def = pruned_to(without, [*_roots(decided.model, lookups.values()), *gated.tensors])
    left = {node.name for node in graph_def.node}
    return CutModel(
        inlined=decided.model,
        tables=decided.tables,
        whole=decided.whole,
        programs=programs,
        regions=regions,
        gated=gated,
        variables=tuple(v for v in decided.variables if v.node in left),
        graph_def=graph_def,
    )


class _Cutter:
    def __init__(
        self,
        model: InlinedModel,
        graph_def: graph_pb2.GraphDef,
        rule: CutRule,
        gated: GatedRegions,
    ) -> None:
        self._model = model
        self._rule = rule
        self._gated = gated
        outputs = [*_outputs(model), *gated.tensors]
        self._variables = restored_variables(Graph(graph_def), model.restore_op)
        self._graph_def = _cleaned(model, graph_def, gated)
        self._graph = ShapedGraph(self._graph_def, outputs)
        self._live = self._graph.ancestors(self._graph.outputs)
        self._finder = MotifFinder(self._graph, self._live)
        self._partitioned = find_partitioned(
            self._graph, self._live, self._variables, self._readers
        )
        self._tables: dict[str, CutTable] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._cut_nodes: set[str] = set()
        self._whole: list[WholeVariable] = []

    def decide(self) -> tuple[_Decided, graph_pb2.GraphDef]:
        """The decisions, and the graph that they are about."""
        groups = self._groups()
        self._check_named(groups)
        for partitioned in self._partitioned.tables:
            self._decide_partitioned(partitioned)
        for name, variables in groups.items():
            if variables[0].node not in self._cut_nodes:
                self._decide(name, variables)
        decided = _Decided(
            model=self._model,
            tables=dict(sorted(self._tables.items())),
            whole=tuple(self._whole),
            variables=tuple(self._variables.values()),
            shapes=self._shapes,
            cut_nodes=frozenset(self._cut_nodes),
            gated=self._gated,
        )
        return decided, self._graph_def

    def _groups(self) -> dict[str, list[Variable]]:
        """The live variables by name; the nodes of one value together."""
        names = named(self._variables.values())
        groups: dict[str, list[Variable]] = {}
        for variable in self._variables.values():
            if variable.node in self._live:
                groups.setdefault(names[variable.identity], []).append(variable)
        return dict(sorted(groups.items()))

    def _check_named(self, groups: Mapping[str, list[Variable]]) -> None:
        names = sorted({*groups, *(table.name for table in self._partitioned.tables)})
        for name in sorted(self._rule.named - set(names)):
            known = ", ".join(names) or "none"
            raise InvalidArgument(
                f"table {name!r} is not a variable that a signature of "
                f"{self._model.directory} reads; those are: {known}"
            )

    def _readers(self, variable: Variable) -> frozenset[str] | None:
        node = TableNode(variable.shared_name, variable.dtype, variable.shape or ())
        uses = self._finder.uses(handle_tensor(variable), node, is_ref=variable.is_ref)
        if uses.reasons or uses.shapes:
            return None
        return frozenset(lookup.node for lookup in uses.lookups)

    def _decide_partitioned(self, found: PartitionedTable) -> None:
        """Cut it if it is wanted; otherwise its parts are looked at one by one."""
        if not self._rule.wants(found.name, found.nbytes):
            return
        dtype, row_shape = found.parts[0].dtype, (found.parts[0].shape or ())[1:]
        node = TableNode(found.name, dtype, (found.rows, *row_shape))
        uses = self._finder.uses_of_gathers(found.gathers, node)
        if uses.reasons:
            return
        table = Table(found.name, dtype, found.rows, row_shape)
        self._tables[found.name] = CutTable(table, found.stored, uses.lookups, found.strategy)
        self._cut_nodes.update(found.nodes)

    def _decide(self, name: str, variables: list[Variable]) -> None:
        first = variables[0]
        stored = stored_rows(first)
        reason = self._reason_to_keep(name, first, stored)
        note = self._partitioned.reasons.get(first.node, "")
        if reason is None and first.shape is not None and isinstance(stored, StoredRows):
            uses = self._uses(name, variables)
            hidden = None
            if uses.lookups and name not in self._rule.named:
                hidden = hidden_layer(uses.lookups, first.shape)
            if uses.lookups and not uses.reasons and not hidden:
                table = Table(name, first.dtype, first.shape[0], first.shape[1:])
                self._tables[name] = CutTable(table, (stored,), uses.lookups, note=note)
                self._shapes |= dict.fromkeys(uses.shapes, first.shape)
                self._cut_nodes.update(variable.node for variable in variables)
                return
            reason = "; ".join(uses.reasons) or hidden or "no lookup reads it"
        assert reason is not None
        if name in self._rule.named:
            raise InvalidArgument(f"table {name!r} cannot be cut: {reason}")
        why = "; ".join(filter(None, (reason, note)))
        self._whole.append(
            WholeVariable(name, first.key, first.dtype, first.shape, first.nbytes, why)
        )

    def _uses(self, name: str, variables: list[Variable]) -> Uses:
        node = TableNode(name, variables[0].dtype, variables[0].shape or ())
        found = [self._finder.uses(handle_tensor(v), node, is_ref=v.is_ref) for v in variables]
        return Uses(
            lookups=tuple(lookup for use in found for lookup in use.lookups),
            shapes=tuple(shape for use in found for shape in use.shapes),
            reasons=tuple(why for use in found for why in use.reasons),
        )

    def _reason_to_keep(
        self, name: str, variable: Variable, stored: StoredRows | str
    ) -> str | None:
        if variable.shape is None:
            return "its shape is not known from the graph"
        if not variable.shape or not variable.nbytes:
            return "it is a scalar, or its values are not numbers"
        if not self._rule.wants(name, variable.nbytes):
            return "below the threshold, or not named in the layout"
        return stored if isinstance(stored, str) else None


def _outputs(model: InlinedModel) -> list[str]:
    return [i.name for s in model.signatures.values() for i in s.outputs.values()]


def _numbered(tensors: Iterable[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(tensors)}


def _cleaned(
    model: InlinedModel, graph_def: graph_pb2.GraphDef, gated: GatedRegions
) -> graph_pb2.GraphDef:
    """What the signatures and the init op need; saving and restoring do not."""
    inputs = [i.name for s in model.signatures.values() for i in s.inputs.values()]
    roots = [*_outputs(model), *inputs, *model.assets, *gated.tensors]
    if model.init_op is not None:
        roots.append(model.init_op)
    return pruned_to(graph_def, [tensor(name) for name in roots])


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
