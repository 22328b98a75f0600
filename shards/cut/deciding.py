"""Decides which variables become tables: those that are wanted, and of which every use is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from tensorflow.core.framework import graph_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.cut.bodies import Bodies, unshare
from shardserve.shards.cut.call_outs import AskedShape
from shardserve.shards.cut.concatenated import ConcatenatedTable, find_concatenated
from shardserve.shards.cut.decided import CutRule, CutTable, Decided, WholeVariable
from shardserve.shards.cut.graph import Graph, split, tensor
from shardserve.shards.cut.inside import InsideFinder
from shardserve.shards.cut.motifs import MotifFinder, TableNode, Uses
from shardserve.shards.cut.partitioned import PartitionedTable, find_partitioned
from shardserve.shards.cut.region_cut import GatedRegions
from shardserve.shards.cut.rewrite import bypass_identity_n, prune
from shardserve.shards.cut.saved_model import InlinedModel
from shardserve.shards.cut.scorings import hidden_layer
from shardserve.shards.cut.shapes import ShapedGraph
from shardserve.shards.cut.stored import StoredRows, stored_rows
from shardserve.shards.cut.variables import Variable, handle_tensor, named, restored_variables
from shardserve.shards.tables import Table

#: Variables that an error names at most.
_NAMES = 20


class Decider:
    """Decides about all variables of one model; first takes out, in place, what it never runs."""

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
        _clean(model, graph_def, gated)
        unshare(graph_def)
        self._graph = ShapedGraph(graph_def, outputs)
        self._live = self._graph.ancestors(self._graph.outputs)
        self._finder = MotifFinder(self._graph, self._live)
        self._inside = InsideFinder(self._finder, Bodies(graph_def))
        self._partitioned = find_partitioned(
            self._graph, self._live, self._variables, self._readers
        )
        self._concatenated = find_concatenated(self._graph, self._live, self._variables)
        self._tables: dict[str, CutTable] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._shapes_inside: dict[AskedShape, tuple[int, ...]] = {}
        self._cut_nodes: set[str] = set()
        #: Why slices that are concatenated are not one table, by the variable's node.
        self._slices: dict[str, str] = {}
        self._whole: list[WholeVariable] = []

    def decide(self) -> Decided:
        """The decisions."""
        groups = self._groups()
        self._check_named(groups)
        for partitioned in self._partitioned.tables:
            self._decide_partitioned(partitioned)
        for concatenated in self._concatenated:
            self._decide_concatenated(concatenated)
        for name, variables in groups.items():
            if variables[0].node not in self._cut_nodes:
                self._decide(name, variables)
        return Decided(
            model=self._model,
            tables=dict(sorted(self._tables.items())),
            whole=tuple(self._whole),
            variables=tuple(self._variables.values()),
            shapes=self._shapes,
            shapes_inside=self._shapes_inside,
            cut_nodes=frozenset(self._cut_nodes),
            gated=self._gated,
        )

    def _groups(self) -> dict[str, list[Variable]]:
        """The live variables by name; the nodes of one value together."""
        names = named(self._variables.values())
        groups: dict[str, list[Variable]] = {}
        for variable in self._variables.values():
            if variable.node in self._live:
                groups.setdefault(names[variable.identity], []).append(variable)
        return dict(sorted(groups.items()))

    def _check_named(self, groups: Mapping[str, list[Variable]]) -> None:
        several = {table.name for table in self._partitioned.tables}
        several |= {table.name for table in self._concatenated}
        names = sorted(several.union(groups))
        for name in sorted(self._rule.named - set(names)):
            raise InvalidArgument(
                f"{self._named}table {name!r} is not a variable that a signature of "
                f"{self._model.directory} reads; those are: {_some_of(names, name)}"
            )

    @property
    def _named(self) -> str:
        return f"{self._rule.named_in}: " if self._rule.named_in else ""

    def _readers(self, variable: Variable) -> frozenset[str] | None:
        node = TableNode(variable.shared_name, variable.dtype, variable.shape or ())
        uses = self._finder.uses(handle_tensor(variable), node, is_value=variable.is_ref)
        if uses.reasons or uses.shapes or uses.entries:
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

    def _decide_concatenated(self, found: ConcatenatedTable) -> None:
        """Cut it if it is wanted and can be; otherwise its parts are looked at one by one."""
        if not self._rule.wants(found.name, found.nbytes):
            return
        node = TableNode(found.name, found.dtype, found.shape)
        uses = [self._finder.uses_of_gathers(found.gathers, node)]
        uses += [self._finder.uses(value, node, is_value=True) for value in found.values]
        note = f"{len(found.parts)} variables, slices of one entry, are one table"
        reason = self._cut_or_reason(node, found.stored, _together(uses), note)
        if reason is None:
            self._cut_nodes.update(found.nodes)
            self._cut_nodes.update(split(value)[0] for value in found.values)
        elif found.name in self._rule.named:
            raise InvalidArgument(f"{self._named}table {found.name!r} cannot be cut: {reason}")
        else:
            self._slices |= dict.fromkeys(found.nodes, f"{found.name}: {reason}")

    def _decide(self, name: str, variables: list[Variable]) -> None:
        first = variables[0]
        stored = stored_rows(first)
        reason = self._reason_to_keep(name, first, stored)
        note = self._slices.get(first.node) or self._partitioned.reasons.get(first.node, "")
        if reason is None and first.shape is not None and isinstance(stored, StoredRows):
            node = TableNode(name, first.dtype, first.shape)
            reason = self._cut_or_reason(node, stored, self._uses(node, variables), note)
            if reason is None:
                self._cut_nodes.update(variable.node for variable in variables)
                return
        assert reason is not None
        if name in self._rule.named:
            raise InvalidArgument(f"{self._named}table {name!r} cannot be cut: {reason}")
        why = "; ".join(filter(None, (reason, note)))
        self._whole.append(
            WholeVariable(name, first.key, first.dtype, first.shape, first.nbytes, why)
        )

    def _cut_or_reason(
        self, node: TableNode, stored: StoredRows, uses: Uses, note: str
    ) -> str | None:
        """Cut the table, with all its uses; or say why it cannot be, or is not worth to be, cut."""
        inside = self._inside.uses(uses.entries, node)
        table = Table(node.name, node.dtype, node.shape[0], node.shape[1:])
        cut = CutTable(table, (stored,), uses.lookups, None, note, tuple(inside.call_outs))
        reason = "; ".join((*uses.reasons, *inside.reasons))
        if not reason and not cut.all_lookups:
            reason = "no lookup reads it"
        if not reason and node.name not in self._rule.named:
            reason = hidden_layer(cut.all_lookups, node.shape) or ""
        if not reason:
            self._tables[node.name] = cut
            self._shapes |= dict.fromkeys(uses.shapes, node.shape)
            self._shapes_inside |= dict.fromkeys(inside.shapes, node.shape)
        return reason or None

    def _uses(self, node: TableNode, variables: list[Variable]) -> Uses:
        return _together(
            [self._finder.uses(handle_tensor(v), node, is_value=v.is_ref) for v in variables]
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


def _some_of(names: Sequence[str], like: str) -> str:
    """Names, those that are like `like` first; all of them, if they are not many."""
    alike = get_close_matches(like, names, n=_NAMES, cutoff=0.5)
    ordered = [*alike, *(name for name in names if name not in alike)]
    more = [f"and {len(names) - _NAMES} more"] if len(names) > _NAMES else []
    return ", ".join([*ordered[:_NAMES], *more]) or "none"


def _together(found: Sequence[Uses]) -> Uses:
    return Uses(
        lookups=tuple(lookup for use in found for lookup in use.lookups),
        shapes=tuple(shape for use in found for shape in use.shapes),
        reasons=tuple(why for use in found for why in use.reasons),
        entries=tuple(entry for use in found for entry in use.entries),
    )


def _outputs(model: InlinedModel) -> list[str]:
    return [i.name for s in model.signatures.values() for i in s.outputs.values()]


def _clean(model: InlinedModel, graph_def: graph_pb2.GraphDef, gated: GatedRegions) -> None:
    """Keep what the signatures and the init op need; saving and restoring do not."""
    inputs = [i.name for s in model.signatures.values() for i in s.inputs.values()]
    roots = [*_outputs(model), *inputs, *model.assets, *gated.tensors]
    if model.init_op is not None:
        roots.append(model.init_op)
    bypass_identity_n(graph_def)
    prune(graph_def, [tensor(name) for name in roots])
