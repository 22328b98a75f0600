"""What a benchmark hands back: rows that were measured, claims they support, and on what machine.

A benchmark is a module of this package with `run(options: Options) -> Report`; see
`benchmarks.__main__` for how it is found.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

PACKAGES = (
    "shardserve",
    "cupy-cuda12x",
    "faiss-cpu",
    "fbgemm-gpu-cpu",
    "granian",
    "grpcio",
    "litserve",
    "llvmlite",
    "msgpack",
    "numba",
    "numpy",
    "nvidia-pytriton",
    "ray",
    "tensorflow",
    "torch",
    "uvloop",
)


@dataclass(frozen=True)
class Options:
    """How to run. `quick` asks for a small, fast run whose figures mean nothing (a smoke test).

    `settings` are the `--set key=value` pairs; each benchmark says in its docstring which it knows.
    """

    quick: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One measured figure. A `value` of None says it could not be measured; `note` says why."""

    subject: str
    case: str
    metric: str
    unit: str
    value: float | None
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A figure to reach. `sense` says whether `value` has to be at least or at most `to_reach`.

    A `value` of None, when it could not be measured, does not hold. `note` explains a miss.
    """

    name: str
    value: float | None
    to_reach: float
    sense: Literal["at_least", "at_most"] = "at_least"
    note: str = ""

    @property
    def holds(self) -> bool:
        if self.value is None or math.isnan(self.value):
            return False
        if self.sense == "at_least":
            return self.value >= self.to_reach
        return self.value <= self.to_reach


@dataclass(frozen=True)
class Report:
    """The rows in the order to show them, the claims, and what a reader has to know about both."""

    name: str
    rows: Sequence[Row]
    claims: Sequence[Claim]
    notes: Sequence[str] = ()


def missing(subject: str, why: str) -> Row:
    """The row that stands for a subject that is not installed or cannot run here."""
    return Row(subject, "all", "missing", "", None, why)


@dataclass(frozen=True)
class Paired:
    """Two figures measured in turns: the median of the pairs' ratios, and both medians."""

    ratio: float
    ours: float
    theirs: float
    ratios: tuple[float, ...]


def paired_ratio(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Paired:
    """Measure `ours` and `theirs` in turns and take ours / theirs pair by pair.

    Each call makes one measurement and returns its figure. Who goes first alternates, so that a
    machine that slows down or speeds up meanwhile favours neither.
    """
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            second = theirs()
            pairs.append((ours(), second))
        else:
            pairs.append((ours(), theirs()))
    ratios = tuple(mine / other for mine, other in pairs)
    return Paired(
        ratio=statistics.median(ratios),
        ours=statistics.median(mine for mine, _ in pairs),
        theirs=statistics.median(other for _, other in pairs),
        ratios=ratios,
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "transparent_hugepages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
    }


def versions() -> dict[str, str]:
    """Python's version, and each known package's where it is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def as_json(report: Report) -> str:
    """The report, the machine and the versions, as the text of a JSON file."""
    return json.dumps(
        {
            "benchmark": report.name,
            "machine": machine(),
            "versions": versions(),
            "rows": [_row_json(row) for row in report.rows],
            "claims": [_claim_json(claim) for claim in report.claims],
            "notes": list(report.notes),
        },
        indent=1,
    )


def _row_json(row: Row) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "subject": row.subject,
        "case": row.case,
        "metric": row.metric,
        "unit": row.unit,
        "value": row.value,
    }
    return fields | ({"note": row.note} if row.note else {})


def _claim_json(claim: Claim) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": claim.name,
        "value": claim.value,
        "to_reach": claim.to_reach,
        "sense": claim.sense,
        "holds": claim.holds,
    }
    return fields | ({"note": claim.note} if claim.note else {})


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _chosen(switch: str) -> str:
    """The word in brackets of a kernel setting such as "always [madvise] never"."""
    path = Path(switch)
    text = path.read_text() if path.exists() else ""
    return text.partition("[")[2].partition("]")[0] or "unknown"
