"""Seconds and memory that it takes to cut a model of 1,000 tables and 100,000 graph nodes.

Settings: `tables=N` and `nodes=N`, the graph's nodes for each table.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import Claim, Options, Report, Row

TABLES, NODES = 1000, 115
TIMES = 3
SECONDS_TO_REACH = 20
MB_TO_REACH = 1000
OURS = "ours"


def run(options: Options) -> Report:
    """Measure, every cut in a fresh process."""
    tables = int(options.settings.get("tables", 20 if options.quick else TABLES))
    nodes = int(options.settings.get("nodes", NODES))
    model = _built(Path(f".cache/bench/cut_{tables}_{nodes}"), tables, nodes)
    times = 1 if options.quick else TIMES
    found = [_probe("cut", str(model)) for _ in range(times)]
    seconds = statistics.median(one["seconds"] for one in found)
    cpu = statistics.median(one["cpu_seconds"] for one in found)
    peak = max(one["peak_bytes"] for one in found) / 1e6
    count = _probe("count", str(model))["nodes"]
    case = f"{found[0]['tables']} tables, {count} nodes"
    rows = [
        Row(OURS, case, "cut in", "s", seconds),
        Row(OURS, case, "processor time of it", "s", cpu),
        Row(OURS, case, "peak resident", "MB", peak),
        Row(OURS, case, "of it, after imports", "MB", found[0]["imported_bytes"] / 1e6),
    ]
    claims = [
        Claim("cut.seconds_1000_tables", seconds, SECONDS_TO_REACH, sense="at_most", note=case),
        Claim("cut.peak_mb_1000_tables", peak, MB_TO_REACH, sense="at_most", note=case),
    ]
    note = (
        f"Median and maximum of {times} cuts; a cut is `cut_saved_model`, TensorFlow having been "
        "imported; memory is the process's VmHWM, TensorFlow's own share in it. Nodes are those of "
        "the inlined graph"
    )
    return Report("cut", rows, claims, [note])


def _built(directory: Path, tables: int, nodes: int) -> Path:
    """The model, made the first time that it is asked for."""
    if not (directory / "saved_model.pb").exists():
        draft = directory.with_name(directory.name + ".draft")
        shutil.rmtree(draft, ignore_errors=True)
        _probe("build", str(draft), str(tables), str(nodes))
        draft.rename(directory)
    return directory


def _probe(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.cut_probe", *words]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found
