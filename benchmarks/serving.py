"""Our server against the others under an open-loop load: the rates that each can promise.

The example model, single examples over REST and batches of 270 over gRPC. A rate is promised if
every request is answered rightly and the 99th percentile of the latencies, counted from the
intended time of sending, stays within a bound; the highest such rate is found by bisection and
compared. Every reply of every run is compared to TensorFlow's.

Settings: `model=DIR`, the example model's base path (`.cache/dlrm`; built if it is missing);
`bound_ms=N`, the bound for single examples.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.report import Claim, Options, Report, Row, missing
from benchmarks.server_process import DidNotStart, unwinding_on_sigterm
from benchmarks.serving_contest import (
    RUNS_TO_FAIL,
    Case,
    Contender,
    Disqualified,
    Watch,
    highest_by_round,
    p99_ratios,
)
from benchmarks.serving_requests import draw, load_signature
from benchmarks.serving_subjects import Drawn, Subject, ours, ray_serve, triton, triton_missing
from benchmarks.workloads import DlrmQueries
from examples.dlrm import EXTRA

SINGLE = Case("1 example, REST", bound=0.050, clients=64, seconds=3.0, tries=4, rounds=3)
BATCH = Case("270 examples, gRPC", bound=0.500, clients=4, seconds=6.0, tries=3, rounds=2)
BATCH_SIZE = 270
PAIRS = 4

SHARDED = "ours, 4 shards"
UNBATCHED = "ours, 4 shards, no batching"
UNSHARDED = "ours, unsharded"
BATCHING = ("--enable_batching",)
SHARDS = ("--shards=4",)
WHOLE = ("--shards=1", "--cut_threshold=1TiB")

RAY_SERVE_WAYS = ((64, 0.0), (64, 0.005), (128, 0.010))
TRITON_DELAYS_US = (0, 2000, 5000)


@dataclass
class Stand:
    """Where servers are measured, and what was found out so far."""

    single: Case
    batch: Case
    base_path: Path
    drawn: Drawn
    directory: Path
    watch: Watch
    rows: list[Row]
    claims: list[Claim]

    @property
    def cases(self) -> tuple[Case, Case]:
        return self.single, self.batch

    def ours(self, name: str, *flags: str) -> Subject:
        return ours(name, self.base_path, self.drawn, flags)

    def enter(self, stack: ExitStack, subject: Subject) -> Contender | None:
        """Start a server that runs until `stack` is left; None and a row if it does not."""
        directory = self.directory / str(len(list(self.directory.iterdir())))
        with ExitStack() as trial:
            try:
                contender = trial.enter_context(Contender(subject, directory, self.watch))
                contender.get_ready(*self.cases)
            except (DidNotStart, Disqualified) as error:
                self.watch.say(f"{subject.name}: {error}")
                self.rows.append(missing(subject.name, str(error)))
                return None
            stack.push(trial.pop_all())
            return contender

    def compare(self, contenders: Sequence[Contender], case: Case) -> dict[str, list[float]]:
        """The highest rates of each round; rows of them, and of each at half of its own."""
        rates = highest_by_round(contenders, case)
        for contender in contenders:
            self._show(contender, case, statistics.median(rates[contender.name]))
        return rates

    def _show(self, contender: Contender, case: Case, rate: float) -> None:
        figures = {
            ("closed loop", "req/s"): contender.capacity(case),
            (case.promise, "req/s"): rate,
        }
        if rate:
            half = contender.at(case, rate / 2)
            figures |= {
                (f"p{percent} at half that", "ms"): half.percentile(percent) * 1e3
                for percent in (50, 99)
            }
        note = contender.disqualified or contender.setting
        self.rows += [
            Row(contender.name, case.name, metric, unit, finite(value), note)
            for (metric, unit), value in figures.items()
        ]


def run(options: Options) -> Report:
    """Measure. Ends every server that it started, also when it is interrupted."""
    base_path = Path(options.settings.get("model", ".cache/dlrm"))
    subprocess.run([sys.executable, "-m", "examples.dlrm", f"--out={base_path}"], check=True)
    with unwinding_on_sigterm(), TemporaryDirectory(prefix="serving-") as directory:
        stand = _stand(options, base_path, Path(directory))
        with ExitStack() as stack:
            sharded = stand.enter(stack, stand.ours(SHARDED, *SHARDS, *BATCHING))
            _against_peers(stand, sharded)
            _against_unsharded(stand, sharded)
        _without_batching(stand)
    notes = [*_notes(stand), *stand.watch.describe()]
    return Report("serving", stand.rows, stand.claims, notes)


def _stand(options: Options, base_path: Path, directory: Path) -> Stand:
    bound = float(options.settings.get("bound_ms", SINGLE.bound * 1e3)) / 1e3
    single, batch = replace(SINGLE, bound=bound), BATCH
    if options.quick:
        single, batch = (replace(case, seconds=1.0, tries=1, rounds=1) for case in (single, batch))
    drawn = _draw(base_path, *((64, 4) if options.quick else (1024, 32)))
    return Stand(single, batch, base_path, drawn, directory, Watch(), [], [])


def _draw(base_path: Path, singles: int, batches: int) -> Drawn:
    parameters = json.loads((base_path / "1" / EXTRA / "parameters.json").read_text())
    queries = DlrmQueries(tuple(parameters["rows"]), tuple(parameters["hots"]), parameters["dense"])
    signature = load_signature(base_path / "1")
    return Drawn(
        draw(signature, queries, 1, singles), draw(signature, queries, BATCH_SIZE, batches)
    )


def _against_peers(stand: Stand, sharded: Contender | None) -> None:
    """All servers run at once and take turns."""
    subjects = [ray_serve(stand.base_path, stand.drawn, RAY_SERVE_WAYS)]
    why_not = triton_missing()
    if why_not is None:
        subjects.append(triton(stand.base_path, stand.drawn, TRITON_DELAYS_US))
    else:
        stand.rows.append(missing("Triton", why_not))
    with ExitStack() as stack:
        entered = [sharded, *(stand.enter(stack, subject) for subject in subjects)]
        contenders = [contender for contender in entered if contender is not None]
        for case, name, to_reach in (
            (stand.single, "serving.rest_single_vs_best_peer", 2.0),
            (stand.batch, "serving.grpc_batch270_vs_best_peer", 1.0),
        ):
            rates = stand.compare(contenders, case)
            value, note = versus_best(rates.pop(SHARDED, []), rates)
            stand.claims.append(Claim(name, value, to_reach, note=note))


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


def _against_unsharded(stand: Stand, sharded: Contender | None) -> None:
    """Both in turns at half of what the unsharded server can promise."""
    ratios: dict[str, float] = {}
    with ExitStack() as stack:
        unsharded = stand.enter(stack, stand.ours(UNSHARDED, *WHOLE, *BATCHING))
        if sharded is not None and unsharded is not None:
            for case in stand.cases:
                rate = stand.compare([unsharded], replace(case, rounds=1))[UNSHARDED][0] / 2
                ratio = statistics.median(p99_ratios(sharded, unsharded, case, rate, PAIRS))
                ratios[case.name] = ratio
                metric = f"p99 / unsharded p99, both at {rate:.1f} req/s"
                stand.rows.append(Row(SHARDED, case.name, metric, "", finite(ratio)))
    value, note = worst(ratios)
    claim = Claim("serving.sharded_p99_vs_unsharded", value, 1.25, sense="at_most", note=note)
    stand.claims.append(claim)


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


def _without_batching(stand: Stand) -> None:
    with ExitStack() as stack:
        contender = stand.enter(stack, stand.ours(UNBATCHED, *SHARDS))
        if contender is not None:
            stand.compare([contender], replace(stand.single, rounds=1))


def _notes(stand: Stand) -> list[str]:
    single, batch = stand.cases
    load = (
        f"Poisson arrivals, {single.seconds:g} s ({single.name}) and {batch.seconds:g} s "
        f"({batch.name}) for each rate, ids uniform; every reply was compared to TensorFlow's, to "
        "1e-5 relative"
    )
    search = (
        f"Rates are found by bisection in {single.tries} and {batch.tries} tries, a try failing "
        f"only if {RUNS_TO_FAIL} runs do; medians of {single.rounds} and {batch.rounds} rounds, in "
        "which the servers that are compared run at once and take turns; one round for those "
        "unsharded and without batching"
    )
    settings = (
        "Each peer was given the best of its settings for single examples, found in this run; "
        "Triton's REST is the open inference protocol's JSON, the others' TensorFlow Serving's rows"
    )
    return [load, search, settings]
