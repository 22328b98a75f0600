"""From start to first right answer; memory of every process; the rate at which slices are read.

A DLRM of 1.16 GB over 4 shards, so 0.29 GB of slices each. Starts are measured with the checkpoint
in the page cache; reads both so and with it evicted before each, `cat` in turns with us.

Settings: `model=DIR`, a base path to use instead (built there, if it is missing, in the size
above).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.load_probe import SHARDS
from benchmarks.load_starts import (
    REQUESTS,
    SHARD_TITLE,
    Example,
    Started,
    is_shard,
    probe,
    start_probe,
    start_server,
    start_tensorflow,
    title,
)
from benchmarks.report import Claim, Options, Report, Row, missing, paired_ratio
from benchmarks.server_process import (
    DidNotStart,
    ProcessMemory,
    unwinding_on_sigterm,
)
from benchmarks.serving_subjects import MODEL
from shardserve.shards.model import PlanOptions

SCALE = 90
STARTS = 3
READS = 5
#: What a shard process may have besides its slices.
ALLOWANCE = 150e6

RAY_ENGINE = f"ours, ray engine, {SHARDS} shards"
LOCAL_ENGINE = f"ours, local engine, {SHARDS} shards"
TENSORFLOW = "tf.saved_model.load"
TF_IMPORT = "import tensorflow"
ENGINES = {RAY_ENGINE: "ray", LOCAL_ENGINE: "local"}


@dataclass
class Findings:
    """Rows and claims, as they come."""

    rows: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)


def run(options: Options) -> Report:
    """Measure. Ends every process that it started, also when it is interrupted."""
    base_path = Path(options.settings.get("model", f".cache/bench/dlrm_{SCALE}"))
    build = ("examples.dlrm", f"--out={base_path}", f"--scale={SCALE}")
    subprocess.run([sys.executable, "-m", *build], check=True)
    version, starts, reads = base_path / "1", STARTS, READS
    if options.quick:
        starts = reads = 1
    findings = Findings()
    with unwinding_on_sigterm(), TemporaryDirectory(prefix="load-") as logs:
        _measure_starts(findings, base_path, starts, Path(logs))
    _measure_reads(findings, version, reads)
    return Report("load", findings.rows, findings.claims, _notes(version, starts, reads))


def _measure_starts(findings: Findings, base_path: Path, times: int, logs: Path) -> None:
    """Everybody in turns; the medians, and the memory of the last start."""
    example = Example(base_path / "1")
    ways: dict[str, Callable[[], Started]] = {
        TF_IMPORT: partial(start_probe, "import"),
        TENSORFLOW: partial(start_tensorflow, example),
    }
    for name, engine in ENGINES.items():
        ways[name] = partial(start_server, engine, base_path, example, logs)
    read_whole(data_file(example.version))
    found: dict[str, list[Started]] = {name: [] for name in ways}
    for _ in range(times):
        for name in list(ways):
            try:
                found[name].append(ways[name]())
            except DidNotStart as error:
                findings.rows.append(missing(name, str(error)))
                del ways[name]
    for name in ways:
        metric = "imported" if name == TF_IMPORT else "first right answer"
        seconds = statistics.median(one.seconds for one in found[name])
        findings.rows.append(Row(name, "start", f"{metric} after", "s", seconds))
    for name in ways:
        findings.rows += _memory_rows(name, found[name][-1].memory)
    if RAY_ENGINE in ways:
        peaks = [one for start in found[RAY_ENGINE] for one in start.memory if is_shard(one)]
        _claim_memory(findings, base_path, peaks)
    else:
        findings.claims.append(_memory_claim(None, "not measured: the server did not start"))


def _memory_rows(name: str, processes: Sequence[ProcessMemory]) -> Iterator[Row]:
    for process in sorted(processes, key=lambda one: -one.peak_bytes):
        yield Row(name, title(process.command), "peak resident", "MB", process.peak_bytes / 1e6)


def _claim_memory(findings: Findings, base_path: Path, shards: Sequence[ProcessMemory]) -> None:
    slice_bytes = _slice_bytes(base_path)
    for shard, nbytes in enumerate(slice_bytes):
        findings.rows.append(
            Row(RAY_ENGINE, f"shard {shard}", "bytes of slices", "MB", nbytes / 1e6)
        )
    if not shards:
        findings.claims.append(_memory_claim(None, f"no process is titled {SHARD_TITLE}"))
        return
    peak = max(process.peak_bytes for process in shards)
    # Which process is which shard does not show from outside: the worst that it may be.
    ratio = (peak - ALLOWANCE) / min(slice_bytes)
    note = f"peak {peak / 1e6:.0f} MB for {min(slice_bytes) / 1e6:.0f} MB of slices"
    findings.claims.append(_memory_claim(ratio, note))


def _memory_claim(value: float | None, note: str) -> Claim:
    return Claim("load.shard_memory_ratio", value, 1.05, sense="at_most", note=note)


def _slice_bytes(base_path: Path) -> list[int]:
    from shardserve.shards.cut.planning import plan_model

    plan = plan_model(MODEL, 1, base_path / "1", PlanOptions(shards=SHARDS))
    return [plan.bytes_of_shard(shard) for shard in range(SHARDS)]


def _measure_reads(findings: Findings, version: Path, times: int) -> None:
    """Slices against `cat`, by how they are cut and whether the page cache has the file."""
    file = data_file(version)
    for state, prepare in (("evicted", evict), ("cached", read_whole)):
        for sharding in ("row_range", "row_hash"):
            case = f"{sharding}, file {state}"

            def ours(sharding: str = sharding, prepare: Callable[[Path], None] = prepare) -> float:
                prepare(file)
                return _read_rate(version, sharding)

            def cat(prepare: Callable[[Path], None] = prepare) -> float:
                prepare(file)
                return _cat_rate(file)

            pair = paired_ratio(ours, cat, times)
            findings.rows += [
                Row("ours", case, "read", "GB/s", pair.ours),
                Row("cat", case, "read", "GB/s", pair.theirs),
                Row("ours", case, "read / cat", "", pair.ratio),
            ]
            if (state, sharding) == ("evicted", "row_range"):
                findings.claims.append(Claim("load.read_rate_vs_cat", pair.ratio, 0.8, note=case))


def _read_rate(version: Path, sharding: str) -> float:
    found = probe("read", str(version), sharding)
    return float(found["bytes"] / found["seconds"] / 1e9)


def _cat_rate(file: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["cat", str(file)], stdout=subprocess.DEVNULL, check=True)
    return file.stat().st_size / (time.perf_counter() - started) / 1e9


def data_file(version: Path) -> Path:
    """The checkpoint's one data file."""
    return version / "variables" / "variables.data-00000-of-00001"


def evict(file: Path) -> None:
    """Make this machine's page cache forget a file."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # A page that is not written yet would stay.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_whole(file: Path) -> None:
    """Have the page cache hold all of a file."""
    with file.open("rb", buffering=0) as stream:
        while stream.read(1 << 20):
            pass


def _notes(version: Path, starts: int, reads: int) -> list[str]:
    size = data_file(version).stat().st_size / 1e9
    starting = (
        f"Starts: medians of {starts}, in turns, from the start of the process, the data file of "
        f"{size:.2f} GB in the page cache; memory is each process's VmHWM after {REQUESTS} requests"
    )
    ratio = (
        "load.shard_memory_ratio takes the largest peak of any shard in any start, less 150 MB, "
        "over the smallest bytes of slices"
    )
    reading = (
        f"Reads: medians of {reads} pairs, each in a fresh process: bytes of one shard's slices "
        "over the seconds of Shard.load, and the file's bytes over those of `cat FILE > "
        "/dev/null`. Evicted is by posix_fadvise; what holds the disk may have a cache of its own. "
        f"row_hash wants every {SHARDS}th row of 512 bytes, so every page of the file"
    )
    return [starting, ratio, reading]
