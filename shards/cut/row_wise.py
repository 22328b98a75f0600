"""Which tensors join: f(join of requests) = join of f(each request), on dimension 0. Static.

Followed forward from the signatures' inputs, of which it is taken for granted: who switches
batching on says that their dimension 0 is examples. What is not known to join does not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from shardserve.shards.cut.call_outs import REQUEST
from shardserve.shards.cut.enclosed import PLACEHOLDERS
from shardserve.shards.cut.graph import ITERATES, data_inputs, has_effect, split, tensor
from shardserve.shards.cut.lookups import Lookup, Motif
from shardserve.shards.cut.regions import RegionCall
from shardserve.shards.cut.row_kinds import FIXED, Fixed, Mixed, RowKind, Rows
from shardserve.shards.cut.row_rules import Operation, kind_of_output
from shardserve.shards.cut.scorings import AnyCall, Scoring
from shardserve.shards.cut.shapes import ShapedGraph


class RowWise:
    """Answers for one cut model's graph; each tensor is looked at once.

    `inputs` are the tensors that signatures begin with, `calls` the lookups and regions by each
    tensor that they make known.
    """

    def __init__(
        self, graph: ShapedGraph, inputs: Collection[str], calls: Mapping[str, AnyCall]
    ) -> None:
        self._graph = graph
        self._calls = calls
        self._kinds: dict[str, RowKind] = {}
        for name in inputs:
            scalar = name and graph.rank(name) == 0
            why = f"{name} is a scalar, and has no rows"
            self._kinds[tensor(name)] = Mixed(why) if scalar else Rows(1)

    def kind(self, name: str) -> RowKind:
        """What is known of a tensor."""
        name = tensor(name)
        pending = [name]
        while pending:
            at = pending[-1]
            if at not in self._kinds:
                unknown = [t for t in self._sources(at) if t not in self._kinds]
                if unknown:
                    pending.extend(unknown)
                    continue
                self._kinds[at] = self._computed(at)
            pending.pop()
        return self._kinds[name]

    def why_not(self, name: str) -> str | None:
        """Why a tensor cannot be joined; None if it can."""
        match self.kind(name):
            case Rows():
                return None
            case Mixed(reason):
                return reason
            case Fixed():
                return f"{name} follows from no input"
            case _:
                return f"{name} is a number of rows, of which joined requests have another"

    def _sources(self, name: str) -> list[str]:
        """The tensors that the answer follows from; none for what is not followed through."""
        call = self._calls.get(name)
        if call is not None:
            return [tensor(operand) for operand in call.operands]
        node = self._graph.nodes.get(split(name)[0])
        if node is None or node.op in PLACEHOLDERS or node.op in ITERATES:
            return []
        return data_inputs(node)

    def _computed(self, name: str) -> RowKind:
        call = self._calls.get(name)
        if call is not None:
            return self._of_call(name, call)
        if name == REQUEST:
            return Mixed("it reads tables in a loop or a branch, for one request at a time")
        node = self._graph.nodes[split(name)[0]]
        if node.op in ITERATES:
            return Mixed(f"{node.op} {node.name} goes round a loop")
        if node.op in PLACEHOLDERS:
            return Mixed(f"{name} is an input of another signature")
        if has_effect(node, self._graph.library):
            return Mixed(f"{node.op} {node.name} has an effect, or draws at random")
        kinds = [self._kinds[source] for source in data_inputs(node)]
        if node.op == "IdentityN":
            return kinds[split(name)[1]]
        for kind in kinds:
            if isinstance(kind, Mixed):
                return kind
        if all(isinstance(kind, Fixed) for kind in kinds):
            return FIXED
        return kind_of_output(Operation(self._graph, node, kinds), name)

    def _of_call(self, name: str, call: AnyCall) -> RowKind:
        kinds = {operand: self._kinds[tensor(operand)] for operand in call.operands}
        for kind in kinds.values():
            if isinstance(kind, Mixed):
                return kind
        match call:
            case Lookup():
                return self._of_lookup(call, kinds)
            case Scoring():
                return self._of_scoring(call, kinds)
            case RegionCall():
                return _alike(f"the region {call.region}", list(kinds.values()))

    def _of_lookup(self, lookup: Lookup, kinds: Mapping[str, RowKind]) -> RowKind:
        where = f"the lookup {lookup.node}"
        if lookup.motif is Motif.SEGMENT_POOL or lookup.take is not None:
            return Mixed(f"{where} pools by segments, whose numbers are of one request alone")
        if lookup.motif is Motif.GATHER:
            return _alike(where, list(kinds.values()))
        if (self._graph.rank(lookup.ids) or 0) < 2:
            return Mixed(f"{where} pools ids that are not known to have a dimension besides rows")
        factors = [name for name in (lookup.weights, lookup.mask) if name is not None]
        for name in factors:
            if not isinstance(kinds[name], Rows) and not self._is_of_all_rows(name):
                return Mixed(f"{where} has weights or a mask that are not known to be of its rows")
        of_rows = [kinds[name] for name in factors if isinstance(kinds[name], Rows)]
        return _alike(where, [kinds[lookup.ids], *of_rows])

    def _is_of_all_rows(self, factor: str) -> bool:
        """Whether a fixed factor is the same for each row of the ids."""
        shape = self._graph.shape(factor)
        return shape is not None and (len(shape) < 3 or shape[0] == 1)

    def _of_scoring(self, scoring: Scoring, kinds: Mapping[str, RowKind]) -> RowKind:
        where = f"the product {scoring.product}"
        if scoring.transposed or scoring.table_first or scoring.rank is None:
            return Mixed(f"{where} has its queries in no order that is known to be that of rows")
        if scoring.bias is not None and not isinstance(kinds[scoring.bias], Fixed):
            return Mixed(f"{where} has a bias of the request's own")
        return kinds[scoring.queries]


def _alike(where: str, kinds: list[RowKind]) -> RowKind:
    """All of them joined, and in the same way."""
    first = kinds[0]
    if isinstance(first, Rows) and all(kind == first for kind in kinds):
        return first
    return Mixed(f"{where} takes tensors that have not all the same rows")
