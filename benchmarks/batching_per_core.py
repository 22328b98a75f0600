"""Requests a core carries through Batch and Unbatch, with an identity stage between.

Each subject has a process of its own, or a Ray cluster, pinned to one core, and callers that ask
again as soon as they are answered: tasks on one event loop, or threads. They take turns, round by
round, first one way and then the other. `--set rounds=N` changes the number of rounds (3), `--set
seconds=X` how long a rate is taken (2), `--set standing=N` how many callers there are (256).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.batching_section import Section
from benchmarks.report import Claim, Options, Row, missing

OURS, SERVE = "shardserve", "serve.batch"
#: The same in a process of its own, called as their users call it.
STREAM, HANDLE = "shardserve, by stream", "serve.batch, by handle"
SUBJECTS = (OURS, STREAM, SERVE, HANDLE, "BatchFunction", "LitServe")
TENSORS = (1, 27)
#: Only in the first round, as it takes a cluster to start.
ONCE = frozenset({HANDLE})

#: By subject and tensors: the rate of each round, requests a second of processor time.
Rates = dict[tuple[str, int], list[float]]


def measure(options: Options) -> Section:
    """Every subject with 1 tensor and with 27."""
    rounds = int(options.settings.get("rounds", 1 if options.quick else 3))
    seconds = options.settings.get("seconds", "0.2" if options.quick else "2")
    standing = options.settings.get("standing", "256")
    rates: Rates = {}
    lost: dict[str, str] = {}
    for turn in range(rounds):
        for subject in SUBJECTS[::-1] if turn % 2 else SUBJECTS:
            if turn and subject in ONCE:
                continue
            for tensors in TENSORS:
                _measure(subject, tensors, [standing, seconds], rates, lost)
    rows = [
        Row(subject, f"{tensors} tensors", "rate", "requests/s/core", statistics.median(found))
        for (subject, tensors), found in sorted(rates.items(), key=_shown)
    ]
    rows += [missing(subject, why) for subject, why in lost.items()]
    return Section(rows, _claims(rates), _notes(rounds, seconds, standing))


def _measure(
    subject: str, tensors: int, rest: Sequence[str], rates: Rates, lost: dict[str, str]
) -> None:
    if subject in lost:
        return
    command = [sys.executable, "-m", "benchmarks.batching_subjects", subject, str(tensors), *rest]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lost[subject] = done.stderr.strip().rpartition("\n")[2]
    else:
        rate = json.loads(done.stdout.splitlines()[-1])["per_core"]
        rates.setdefault((subject, tensors), []).append(rate)


def _shown(item: tuple[tuple[str, int], list[float]]) -> tuple[int, int]:
    subject, tensors = item[0]
    return tensors, SUBJECTS.index(subject)


def _claims(rates: Rates) -> list[Claim]:
    ours = rates.get((OURS, 1))
    ratio = _ratio(ours, rates.get((SERVE, 1)))
    remote = _ratio(rates.get((STREAM, 1)), rates.get((HANDLE, 1)))
    note = "1 tensor" + (f"; by stream {remote:.1f} times by handle" if remote is not None else "")
    return [
        Claim("batching.per_core_1_tensor", _median(ours), 500_000),
        Claim("batching.per_core_27_tensors", _median(rates.get((OURS, 27))), 100_000),
        Claim("batching.vs_serve_batch", ratio, 20.0, note=note),
    ]


def _ratio(ours: Sequence[float] | None, theirs: Sequence[float] | None) -> float | None:
    """The median of what the rounds say in which both were measured."""
    if not ours or not theirs:
        return None
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=False))


def _median(found: Sequence[float] | None) -> float | None:
    return statistics.median(found) if found else None


def _notes(rounds: int, seconds: str, standing: str) -> list[str]:
    how = (
        f"per core: medians of {rounds} rounds of {seconds} s, {standing} callers, requests of one "
        "row of 16 floats in each tensor; requests are counted for each second of processor time "
        "of a process that is pinned to one core"
    )
    whom = (
        "per core: serve.batch is the decorator in plain asyncio on uvloop, without a Serve "
        "cluster; BatchFunction is called by threads; LitServe is its batching loop alone, between "
        "a queue and its answers, without HTTP and processes; mosec's batcher is in a Rust server "
        "behind HTTP and cannot be called by itself"
    )
    remote = (
        "per core: by stream and by handle the caller is in another process, whose processor time "
        "counts, too: over a stage actor's stream, and by the handle of a Serve deployment of one "
        "replica, without HTTP, for one round"
    )
    return [how, whom, remote]
