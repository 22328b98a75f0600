"""Batching: what a core carries through Batch and Unbatch, and what batching by stages gains.

Each section is a module of its own with `measure(options) -> Section`; `--set sections=per_core`
chooses some, by comma. Each says in its docstring which other settings it knows.
"""

from __future__ import annotations

import importlib

from benchmarks.batching_section import Section
from benchmarks.report import Options, Report

#: In the order in which they are shown: each is the module `benchmarks.batching_NAME`.
SECTIONS = ("per_core", "stages", "sequences")


def run(options: Options) -> Report:
    """Measure every section, or those that are asked for."""
    names = options.settings.get("sections", ",".join(SECTIONS)).split(",")
    found = [_measured(name, options) for name in names]
    return Report(
        "batching",
        rows=[row for section in found for row in section.rows],
        claims=[claim for section in found for claim in section.claims],
        notes=[note for section in found for note in section.notes],
    )


def _measured(name: str, options: Options) -> Section:
    section: Section = importlib.import_module(f"benchmarks.batching_{name}").measure(options)
    return section
