"""Our server against the others under an open-loop load: the rates that each can promise.

The example model, single examples over REST and batches of 270 over gRPC. A rate is promised if
every request is answered rightly and the 99th percentile of the latencies, counted from the
intended time of sending, stays within a bound; the highest such rate is found by bisection and
compared. Every reply of every run is compared to TensorFlow's. One server runs at a time: each is
started anew for each of its turns.

Settings: `model=DIR`, the example model's base path (`.cache/dlrm`; built if it is missing);
`bound_ms=N`, the bound for single examples.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.report import Claim, Options, Report, Row, missing
from benchmarks.server_process import DidNotStart, unwinding_on_sigterm
from benchmarks.serving_contest import RUNS_TO_FAIL, Case, Contender, Disqualified, Watch
from benchmarks.serving_requests import draw, load_signature
from benchmarks.serving_subjects import (
    Drawn,
    Setting,
    Subject,
    ours,
    ray_serve,
    triton,
    triton_missing,
)
from benchmarks.workloads import DlrmQueries
from examples.dlrm import EXTRA

SINGLE = Case("1 example, REST", bound=0.050, clients=64, seconds=3.0, tries=4)
BATCH = Case("270 examples, gRPC", bound=0.500, clients=4, seconds=6.0, tries=3)
BATCH_SIZE = 270
ROUNDS = 3
#: Runs at the common rate in each turn.
COMMON_RUNS = 2

SHARDED = "ours, 4 shards"
UNBATCHED = "ours, 4 shards, no batching"
UNSHARDED = "ours, unsharded"
#: Batches run beside each other, each on a core of its own: on two cores the tail of the latencies
#: is a fifth shorter at half load than with TensorFlow's own choice of threads.
BATCHING = ("--enable_batching", "--tensorflow_intra_op_parallelism=1")
SHARDS = ("--shards=4",)
WHOLE = ("--shards=1", "--cut_threshold=1TiB")

RAY_SERVE_WAYS = ((64, 0.0), (64, 0.005), (128, 0.010))
TRITON_DELAYS_US = (0, 2000, 5000)


@dataclass
class Record:
    """What a server did with one case, turn by turn.

    `rates` are the highest promised, requests a second; `common` maps a percentile to the
    latencies at the common rate, in seconds.
    """

    capacities: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    common: dict[int, list[float]] = field(default_factory=lambda: {50: [], 99: []})
    note: str = ""


@dataclass
class Stand:
    """Where servers are measured, and what was found out so far.

    `common` is the rate of each case at which all are compared: half of what the unsharded server
    promised in its first turn.
    """

    cases: tuple[Case, Case]
    base_path: Path
    drawn: Drawn
    directory: Path
    watch: Watch
    records: dict[tuple[str, str], Record] = field(default_factory=lambda: defaultdict(Record))
    common: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    _chosen: dict[str, Setting] = field(default_factory=dict)

    def turn(self, subject: Subject, *cases: Case) -> None:
        """One turn of a server: those cases, or all; none if it failed before."""
        if subject.name in self.absent:
            return
        directory = self.directory / str(len(list(self.directory.iterdir())))
        try:
            with Contender(subject, directory, self.watch) as contender:
                chosen = contender.get_ready(*self.cases, self._chosen.get(subject.name))
                self._chosen[subject.name] = chosen
                for case in cases or self.cases:
                    self._measure(contender, case)
        except (DidNotStart, Disqualified) as error:
            self.watch.say(f"{subject.name}: {error}")
            self.absent[subject.name] = str(error)

    def _measure(self, contender: Contender, case: Case) -> None:
        record = self.records[contender.name, case.name]
        rate = contender.highest(case)
        record.rates.append(rate)
        record.capacities.append(contender.capacity(case))
        if contender.name == UNSHARDED:
            self.common.setdefault(case.name, rate / 2)
        if self.common.get(case.name):
            for _ in range(COMMON_RUNS):
                measured = contender.at(case, self.common[case.name])
                for percent, seconds in record.common.items():
                    seconds.append(measured.percentile(percent))
        record.note = contender.disqualified or contender.setting

    def rates(self, case: Case) -> dict[str, list[float]]:
        """The highest rates of the servers that took every turn."""
        return {
            name: record.rates
            for (name, of), record in self.records.items()
            if of == case.name and name not in self.absent
        }

    def rows(self) -> list[Row]:
        """Medians over the turns."""
        promises = {case.name: case.promise for case in self.cases}
        rows = [missing(name, why) for name, why in self.absent.items()]
        for (name, case), record in self.records.items():
            figures = {
                ("closed loop", "req/s"): statistics.median(record.capacities),
                (promises[case], "req/s"): statistics.median(record.rates),
            }
            for percent, seconds in record.common.items():
                if seconds:
                    metric = f"p{percent} at {self.common[case]:.0f} req/s"
                    figures[metric, "ms"] = statistics.median(seconds) * 1e3
            rows += [
                Row(name, case, metric, unit, finite(value), record.note)
                for (metric, unit), value in figures.items()
            ]
        return rows


def run(options: Options) -> Report:
    """Measure. Ends every server that it started, also when it is interrupted."""
    base_path = Path(options.settings.get("model", ".cache/dlrm"))
    subprocess.run([sys.executable, "-m", "examples.dlrm", f"--out={base_path}"], check=True)
    with unwinding_on_sigterm(), TemporaryDirectory(prefix="serving-") as directory:
        stand = _stand(options, base_path, Path(directory))
        subjects = _subjects(stand)
        for turn in range(1 if options.quick else ROUNDS):
            for subject in subjects[:: -1 if turn % 2 else 1]:
                stand.turn(subject)
        stand.turn(ours(UNBATCHED, base_path, stand.drawn, SHARDS), stand.cases[0])
    notes = [*_notes(stand), *stand.watch.describe()]
    return Report("serving", stand.rows(), _claims(stand), notes)


def _subjects(stand: Stand) -> list[Subject]:
    """Those that are compared. The unsharded server is first: it sets the common rate."""
    where = stand.base_path, stand.drawn
    subjects = [
        ours(UNSHARDED, *where, (*WHOLE, *BATCHING)),
        ours(SHARDED, *where, (*SHARDS, *BATCHING)),
        ray_serve(*where, RAY_SERVE_WAYS),
    ]
    why_not = triton_missing()
    if why_not is None:
        subjects.append(triton(*where, TRITON_DELAYS_US))
    else:
        stand.absent["Triton"] = why_not
    return subjects


def _claims(stand: Stand) -> list[Claim]:
    claims = []
    for case, name, to_reach in zip(
        stand.cases,
        ("serving.rest_single_vs_best_peer", "serving.grpc_batch270_vs_best_peer"),
        (2.0, 1.0),
        strict=True,
    ):
        rates = stand.rates(case)
        peers = {peer: of for peer, of in rates.items() if not peer.startswith("ours")}
        value, note = versus_best(rates.get(SHARDED, []), peers)
        claims.append(Claim(name, value, to_reach, note=note))
    value, note = worst(_p99_ratios(stand))
    name = "serving.sharded_p99_vs_unsharded"
    return [*claims, Claim(name, value, 1.25, sense="at_most", note=note)]


def _p99_ratios(stand: Stand) -> dict[str, float]:
    """By case: the median of p99 sharded over unsharded, run by run at the common rate."""
    if {SHARDED, UNSHARDED} & stand.absent.keys():
        return {}
    ratios = {}
    for case in stand.cases:
        sharded, unsharded = (
            stand.records[name, case.name].common[99] for name in (SHARDED, UNSHARDED)
        )
        if unsharded:
            pairs = zip(sharded, unsharded, strict=True)
            ratios[case.name] = statistics.median(one / other for one, other in pairs)
    return ratios


def _stand(options: Options, base_path: Path, directory: Path) -> Stand:
    bound = float(options.settings.get("bound_ms", SINGLE.bound * 1e3)) / 1e3
    single, batch = replace(SINGLE, bound=bound), BATCH
    if options.quick:
        single, batch = (replace(case, seconds=1.0, tries=1) for case in (single, batch))
    drawn = _draw(base_path, *((64, 4) if options.quick else (1024, 32)))
    return Stand((single, batch), base_path, drawn, directory, Watch())


def _draw(base_path: Path, singles: int, batches: int) -> Drawn:
    parameters = json.loads((base_path / "1" / EXTRA / "parameters.json").read_text())
    queries = DlrmQueries(tuple(parameters["rows"]), tuple(parameters["hots"]), parameters["dense"])
    signature = load_signature(base_path / "1")
    return Drawn(
        draw(signature, queries, 1, singles), draw(signature, queries, BATCH_SIZE, batches)
    )


def versus_best(
    mine: Sequence[float], others: Mapping[str, Sequence[float]]
) -> tuple[float | None, str]:
    """The median over the rounds of my figure over the best other's, and a word on it.

    The best is the one of the highest median. None where somebody is missing, or promised nothing.
    """
    if not mine or not others:
        return None, "not measured: a server is missing"
    best = max(others, key=lambda name: statistics.median(others[name]))
    if not all(others[best]):
        return None, f"{best} kept the bound at no rate in some round"
    ratios = [one / other for one, other in zip(mine, others[best], strict=True)]
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return statistics.median(ratios), f"against {best}; by round {shown}"


def worst(ratios: Mapping[str, float]) -> tuple[float | None, str]:
    """The largest, and a word on all. None if there is none, or one could not be measured."""
    if not ratios:
        return None, "not measured: a server is missing"
    note = "the worse of " + ", ".join(f"{name}: {ratio:.2f}" for name, ratio in ratios.items())
    measured = all(map(math.isfinite, ratios.values()))
    return max(ratios.values()) if measured else None, note


def finite(value: float) -> float | None:
    """None for what is no figure."""
    return value if math.isfinite(value) else None


def _notes(stand: Stand) -> list[str]:
    single, batch = stand.cases
    load = (
        f"Poisson arrivals, {single.seconds:g} s ({single.name}) and {batch.seconds:g} s "
        f"({batch.name}) for each rate, ids uniform; every reply was compared to TensorFlow's, to "
        "1e-5 relative"
    )
    search = (
        f"Rates are found by bisection in {single.tries} and {batch.tries} tries, a try failing "
        f"only if {RUNS_TO_FAIL} runs do; medians of the rounds, in each of which every server is "
        "started anew and measured alone; one round for that without batching"
    )
    settings = (
        f"Ours runs with {' '.join(BATCHING)}; each peer was given the best of its settings for "
        "single examples, found in this run; Triton's REST is the open inference protocol's JSON, "
        "the others' TensorFlow Serving's rows"
    )
    return [load, search, settings]
