"""What `shardserve inspect` and `shardserve plan` report. Plain data; the command line draws it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import dtypes

from shardserve.shards.bundle import open_bundle
from shardserve.shards.cut.call_outs import REQUEST
from shardserve.shards.cut.cut import CutModel, CutTable, WholeVariable, cut_saved_model
from shardserve.shards.cut.graph import Graph, tensor
from shardserve.shards.cut.lookups import Lookup, Motif
from shardserve.shards.cut.planning import cut_rule, table_sources
from shardserve.shards.cut.reasons import POOLED, POOLING
from shardserve.shards.cut.saved_model import checkpoint_prefix
from shardserve.shards.cut.scaling import SCALING
from shardserve.shards.cut.scorings import AnyLookup, Scoring
from shardserve.shards.layout_file import read_layout_file
from shardserve.shards.model import PlanOptions
from shardserve.shards.tables import Table


@dataclass(frozen=True)
class TensorForm:
    """An input or output: its alias, dtype and shape, -1 for an unknown size, None for any rank."""

    alias: str
    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class SignatureReport:
    """A signature, and how it is run: the lookups of each round, between the stages.

    A stage that `calls_out` makes lookups of its own, in loops and branches.
    """

    name: str
    inputs: tuple[TensorForm, ...]
    outputs: tuple[TensorForm, ...]
    rounds: tuple[int, ...]
    has_ids_stage: bool
    calls_out: bool


@dataclass(frozen=True)
class TableReport:
    """A table that is cut, the motifs that read it, and the nodes that the cut replaces.

    `notes` say what is not plain: variables that are one table, patterns that were not recognised.
    """

    table: Table
    motifs: tuple[str, ...]
    cut_at: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A SavedModel as the cut sees it."""

    directory: Path
    signatures: tuple[SignatureReport, ...]
    tables: tuple[TableReport, ...]
    whole: tuple[WholeVariable, ...]


def inspect_model(directory: Path, options: PlanOptions) -> Inspection:
    """Cut the SavedModel in `directory` and report; raises as `plan_model` does.

    The checkpoint's index is read too, so that a model that could not be served is not praised.
    """
    file = None if options.layout_file is None else read_layout_file(options.layout_file)
    cut = cut_saved_model(directory, cut_rule(options, file), options.tags)
    _check_checkpoint(directory, cut)
    signatures = tuple(
        _signature(name, signature, cut) for name, signature in cut.inlined.signatures.items()
    )
    graph = Graph(cut.graph_def)
    tables = tuple(_table(found, graph) for found in cut.tables.values())
    return Inspection(directory, signatures, tables, cut.whole)


def _check_checkpoint(directory: Path, cut: CutModel) -> None:
    if cut.tables:
        table_sources(open_bundle(str(checkpoint_prefix(directory))), cut.tables)


def _signature(name: str, signature: meta_graph_pb2.SignatureDef, cut: CutModel) -> SignatureReport:
    program = cut.programs[name]
    return SignatureReport(
        name=name,
        inputs=tuple(_tensor(alias, info) for alias, info in sorted(signature.inputs.items())),
        outputs=tuple(_tensor(alias, info) for alias, info in sorted(signature.outputs.items())),
        rounds=tuple(len(one.lookups) for one in program.rounds),
        has_ids_stage=any(one.stage.fetches for one in program.rounds),
        calls_out=any(REQUEST in stage.feeds for stage in program.stages),
    )


def _tensor(alias: str, info: meta_graph_pb2.TensorInfo) -> TensorForm:
    shape = info.tensor_shape
    known = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
    return TensorForm(alias, dtypes.as_dtype(info.dtype).name, known)


def _table(found: CutTable, graph: Graph) -> TableReport:
    motifs = Counter(_motif(lookup) for lookup in found.lookups)
    motifs.update(f"{_motif(one.lookup)}, called out" for one in found.call_outs)
    return TableReport(
        table=found.table,
        motifs=tuple(f"{count} x {motif}" for motif, count in sorted(motifs.items())),
        cut_at=(
            *(_node(lookup) for lookup in found.lookups),
            *(one.node for one in found.call_outs),
        ),
        notes=tuple(_notes(found, graph)),
    )


def _notes(found: CutTable, graph: Graph) -> Iterator[str]:
    if found.strategy is not None:
        parts = len(found.stored)
        yield f"{parts} variables, partitioned by {found.strategy.value!r}, are one table"
    if found.note:
        yield found.note
    for one in found.call_outs:
        where = f"function {one.scope}" if one.scope else "a loop or a branch"
        yield f"{one.node} runs in {where}: the running graph calls the shards for it"
    for lookup in found.lookups:
        if isinstance(lookup, Lookup) and lookup.motif is Motif.GATHER:
            yield from _not_pooled(lookup, found.table, graph)


def _not_pooled(lookup: Lookup, table: Table, graph: Graph) -> Iterator[str]:
    """What makes less of a gather's rows, but in the dense stage."""
    readers = graph.consumers(lookup.output)
    for node, _ in readers:
        if node.op in SCALING:
            yield from _not_scaled(lookup, node, graph)
        if node.op not in POOLING:
            continue
        if node.op not in POOLED:
            why = "is no sum or mean"
        elif len(readers) > 1:
            why = "is not the only reader"
        else:
            why = f"matches no motif of {table.dtype} rows"
        yield f"{lookup.node}: rows are gathered and not pooled: {node.op} {node.name} {why}"


def _not_scaled(lookup: Lookup, node: NodeDef, graph: Graph) -> Iterator[str]:
    """What makes less of rows that were multiplied or selected from before."""
    for pool, _ in graph.consumers(tensor(node.name)):
        if pool.op in POOLED:
            yield (
                f"{lookup.node}: rows are gathered and not pooled: between them and {pool.op} "
                f"{pool.name}, {node.op} {node.name} is no weight and no mask of one element for "
                "each row, known before the rows are, or not the only reader"
            )


def _node(lookup: AnyLookup) -> str:
    return lookup.node if isinstance(lookup, Scoring) else lookup.output.removesuffix(":0")


def _motif(lookup: AnyLookup) -> str:
    if isinstance(lookup, Scoring):
        return str(lookup)
    if lookup.motif is Motif.GATHER:
        return "gather"
    masked = "masked " if lookup.mask is not None else ""
    weighted = "weighted " if lookup.weights is not None else ""
    return f"{masked}{weighted}{lookup.motif.value} {lookup.combiner.value}"


def _form(table: Table) -> str:
    return f"{table.dtype}{[table.rows, *table.row_shape]}"
