"""Fan-out to 4 processes: the data plane, Ray actor calls, a Ray compiled graph, grpc.aio.

Each subject gathers the same rows from 4 processes of its own, and waits for all. Latency is of
fan-outs one after the other; the rate is of fan-outs with several in flight. The data plane's
requests are whole: authenticated streams, deadlines, headers, arrays, replica choice. The subjects
take turns, round by round, first one way and then the other, and a ratio is of one round's two
figures.

Where the kernel puts five processes on few cores moves the latencies by a third from run to run. So
each subject's processes are pinned, all in the same way, and once more left to the kernel, for
comparison ("unpinned").

`--set rounds=N` changes the number of rounds (5), `--set seconds=X` how long a rate is taken (1.5).
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import uvloop

from benchmarks.report import Claim, Options, Report, Row
from benchmarks.transport_cases import CASES, LARGE, TINY, Case, Subject, place

OURS, RAY_CALLS = "shardserve", "ray calls"
COUNT = 300


@dataclass(frozen=True)
class Setting:
    """A case, and whether the processes are pinned to cores."""

    case: Case
    pinned: bool

    @property
    def name(self) -> str:
        """What the rows call it."""
        return self.case.name if self.pinned else f"{self.case.name}, unpinned"


CLAIMED = Setting(TINY, pinned=True)
SETTINGS = (CLAIMED, Setting(LARGE, pinned=True), Setting(TINY, pinned=False))


@dataclass(frozen=True)
class Measured:
    """One subject's figures for one setting in one round: microseconds, and fan-outs a second."""

    subject: str
    setting: Setting
    p50: float
    p99: float
    rate: float


def run(options: Options) -> Report:
    """The benchmark. It starts a Ray node of its own, and ends it."""
    rounds = int(options.settings.get("rounds", 2 if options.quick else 5))
    seconds = float(options.settings.get("seconds", 0.5 if options.quick else 1.5))
    found: list[Measured] = []
    with ExitStack() as stack:
        subjects = _started(stack)
        for turn in range(rounds):
            ordered = subjects[::-1] if turn % 2 else subjects
            for setting in SETTINGS:
                found += [_measured(subject, setting, seconds) for subject in ordered]
    return Report("transport", _rows(found), _claims(found), _notes(rounds))


def _notes(rounds: int) -> list[str]:
    return [
        f"medians of {rounds} rounds; in flight for the rate: "
        + ", ".join(f"{case.depth} ({case.name})" for case in CASES),
        "pinned: the caller on the first core, the shards from the last core down",
    ]


def _started(stack: ExitStack) -> list[Subject]:
    from benchmarks.transport_grpc import grpc_aio
    from benchmarks.transport_ours import shardserve
    from benchmarks.transport_ray import RayCalls, compiled_graph, ray_node

    plain, fast = asyncio.new_event_loop(), uvloop.new_event_loop()
    stack.callback(plain.close)
    stack.callback(fast.close)
    ours = stack.enter_context(shardserve(fast))
    grpc = stack.enter_context(grpc_aio(plain))
    stack.enter_context(ray_node())
    return [ours, RayCalls(), stack.enter_context(compiled_graph()), grpc]


def _measured(subject: Subject, setting: Setting, seconds: float) -> Measured:
    case = setting.case
    place(subject.processes, setting.pinned)
    subject.latencies(case, COUNT // 10)
    times = np.array(subject.latencies(case, COUNT)) * 1e6
    p50, p99 = np.percentile(times, (50, 99))
    rate = subject.rate(case, seconds)
    return Measured(subject.name, setting, float(p50), float(p99), rate)


def _rows(found: Sequence[Measured]) -> list[Row]:
    rows = []
    for setting, subject in dict.fromkeys((one.setting, one.subject) for one in found):
        these = [one for one in found if (one.setting, one.subject) == (setting, subject)]
        for metric, unit, values in (
            ("p50", "us", [one.p50 for one in these]),
            ("p99", "us", [one.p99 for one in these]),
            ("pipelined", "fan-outs/s", [one.rate for one in these]),
        ):
            rows.append(Row(subject, setting.name, metric, unit, statistics.median(values)))
    return rows


def _claims(found: Sequence[Measured]) -> list[Claim]:
    ours = [one for one in found if (one.subject, one.setting) == (OURS, CLAIMED)]
    theirs = [one for one in found if (one.subject, one.setting) == (RAY_CALLS, CLAIMED)]
    pairs = list(zip(ours, theirs, strict=True))
    return [
        Claim(
            "transport.p50_vs_ray_calls",
            statistics.median(a.p50 / b.p50 for a, b in pairs),
            1 / 15,
            sense="at_most",
            note="tiny replies, one fan-out after the other",
        ),
        Claim(
            "transport.rate_vs_ray_calls",
            statistics.median(a.rate / b.rate for a, b in pairs),
            30.0,
            note="tiny replies, pipelined",
        ),
    ]
