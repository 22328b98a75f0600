"""`python -m benchmarks NAME [--json FILE]`: run one benchmark and show its figures and claims."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from benchmarks.report import Claim, Options, Report, Row, as_json, machine, versions

#: Columns of a table that goes to a file or a pipe.
FILE_WIDTH = 140


class Name(StrEnum):
    """The benchmarks: each is the module `benchmarks.NAME`, imported when it is asked for."""

    LOOKUP = "lookup"
    REPEATS = "repeats"
    TRANSPORT = "transport"
    SERVING = "serving"
    LOAD = "load"
    TERABYTE = "terabyte"
    BATCHING = "batching"
    CUT = "cut"
    TOPK = "topk"
    GPU = "gpu"
    INGRESS = "ingress"


def main(
    name: Annotated[Name, typer.Argument(help="Which benchmark to run.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small run that only shows that it works.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, as the benchmark defines.")
    ] = None,
) -> None:
    """Measure us and the others in one run. A claim that is missed is shown, and is no failure."""
    options = Options(quick=quick, settings=_parse(settings or []))
    report: Report = importlib.import_module(f"benchmarks.{name.value}").run(options)
    if json_file is not None:
        json_file.write_text(as_json(report) + "\n")
    show(report, Console(width=None if sys.stdout.isatty() else FILE_WIDTH))


def _parse(settings: list[str]) -> dict[str, str]:
    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes KEY=VALUE, not {setting!r}")
        parsed[key] = value
    return parsed


def show(report: Report, console: Console) -> None:
    """Print the machine, the rows, the claims and the notes."""
    here = machine()
    console.print(
        f"[bold]{report.name}[/bold] on {here['cpu']}, {here['cores']} cores, "
        f"{here['memory_bytes'] / 2**30:.0f} GiB, Linux {here['kernel']}"
    )
    console.print(", ".join(f"{package} {version}" for package, version in versions().items()))
    console.print(_rows_table(report.rows))
    if report.claims:
        console.print(_claims_table(report.claims))
    for note in report.notes:
        console.print(f"- {note}", highlight=False, markup=False)


def _rows_table(rows: Sequence[Row]) -> Table:
    table = Table("subject", "case", "metric", Column("value", justify="right"), "unit", "note")
    for row in rows:
        table.add_row(
            row.subject, row.case, row.metric, _figure(row.value), row.unit, escape(row.note)
        )
    return table


def _claims_table(claims: Sequence[Claim]) -> Table:
    table = Table(
        Column("claim", no_wrap=True), Column("value", justify="right"), "to reach", "", "note"
    )
    for claim in claims:
        bound = "at least" if claim.sense == "at_least" else "at most"
        verdict = "[green]holds[/green]" if claim.holds else "[red]MISSED[/red]"
        table.add_row(
            claim.name,
            _figure(claim.value),
            f"{bound} {claim.to_reach:.4g}",
            verdict,
            escape(claim.note),
        )
    return table


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


if __name__ == "__main__":
    typer.run(main)
