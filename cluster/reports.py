"""Draws what `inspect` and `plan` found, as tables for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ByteSize
from rich.console import Console
from rich.table import Table as Drawn

from shardserve.cluster.plan_reports import PlanReport
from shardserve.shards.cut.inspection import Inspection, SignatureReport, TensorForm

#: Nodes that are named of those at which one table is cut.
MAX_NODES = 3


def draw_inspection(console: Console, found: Inspection) -> None:
    """Signatures, the tables that are cut and where, and what stays whole and why."""
    console.print(f"[bold]{found.directory}[/bold]", highlight=False)
    _draw(
        console,
        "Signatures",
        ("signature", "inputs", "outputs", "how it runs"),
        [(s.name, _forms(s.inputs), _forms(s.outputs), _stages(s)) for s in found.signatures],
    )
    if found.tables:
        _draw(
            console,
            "Cut: tables for shards",
            ("table", "dtype", "rows", "row", "bytes", "read by", "cut at"),
            [
                (
                    report.table.name,
                    report.table.dtype,
                    f"{report.table.rows:,}",
                    _shape(report.table.row_shape),
                    size(report.table.nbytes),
                    "\n".join(report.motifs),
                    _first_few(report.cut_at),
                )
                for report in found.tables
            ],
        )
    else:
        console.print("Nothing is cut: the model is served whole.")
    remarked = [report for report in found.tables if report.notes]
    if remarked:
        _draw(
            console,
            "Notes: what the cut made of these tables",
            ("table", "note"),
            [(report.table.name, _first_few(report.notes)) for report in remarked],
        )
    if found.whole:
        _draw(
            console,
            "Whole: variables that stay in the routers",
            ("variable", "dtype", "shape", "bytes", "why"),
            [(v.name, v.dtype, _shape(v.shape), size(v.nbytes), v.reason) for v in found.whole],
        )


def draw_check(console: Console, path: Path, report: PlanReport) -> None:
    """That a layout file can be served, what it does with each table, and what with each shard."""
    layout = report.layout
    console.print(
        f"{path}: valid: {len(layout.tables)} tables on {layout.shards} shards, "
        f"{layout.replicas} of each",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if layout.tables:
        _draw(
            console,
            "Tables",
            ("table", "sharding", "slices", "tier", "precision", "bytes"),
            [
                (
                    name,
                    table_layout.sharding.value,
                    str(len(table_layout.slices)),
                    table_layout.storage.tier.value,
                    table_layout.storage.precision.value,
                    size(sum(s.nbytes(report.tables[name]) for s in table_layout.slices)),
                )
                for name, table_layout in sorted(layout.tables.items())
            ],
        )
    draw_plan(console, report)


def draw_plan(console: Console, report: PlanReport) -> None:
    """Bytes and expected lookups of each shard, and bytes read where there are row counts."""
    asked = sum(load.lookups for load in report.loads)
    read = [load.read for load in report.loads if load.read is not None]
    _draw(
        console,
        "Shards",
        ("shard", "slices", "bytes", "lookups a request", "share", *(["bytes read"] * bool(read))),
        [
            (
                str(load.shard),
                str(load.slices),
                size(load.nbytes),
                f"{load.lookups:.2f}",
                f"{load.lookups / asked:.0%}" if asked else "-",
                *([f"{load.read:.0%}"] if load.read is not None else []),
            )
            for load in report.loads
        ],
    )


def size(nbytes: int) -> str:
    """Bytes as a person reads them: 20.0 GiB."""
    return ByteSize(nbytes).human_readable(separator=" ")


def _draw(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    drawn = Drawn(title=title, title_justify="left")
    for name in columns:
        drawn.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn, markup=False, highlight=False)


_NUMBERS = frozenset(
    {"rows", "bytes", "shard", "slices", "lookups a request", "share", "bytes read"}
)


def _first_few(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NODES
    more = [f"and {rest} more"] if rest > 0 else []
    return "\n".join([*names[:MAX_NODES], *more])


def _forms(forms: Sequence[TensorForm]) -> str:
    return "\n".join(f"{form.alias}: {form.dtype} {_shape(form.shape)}" for form in forms)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "any rank" if shape is None else str(list(shape)).replace("-1", "?")


def _stages(signature: SignatureReport) -> str:
    if not signature.rounds:
        return "one stage, which calls out" if signature.calls_out else "one stage, no lookups"
    calls = "; loops and branches call out" if signature.calls_out else ""
    lookups = ", then ".join(f"{count} lookups at once" for count in signature.rounds)
    first = "ids stage, " if signature.has_ids_stage else ""
    return f"{first}{lookups}, dense stage{calls}"
