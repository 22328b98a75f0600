"""Our server against the others under an open-loop load: the rates that each can promise.

The example model, single examples over REST and batches of 270 over gRPC. A rate is promised if
every request is answered rightly and the 99th percentile of the latencies, counted from the
intended time of sending, stays within a bound; the highest such rate is found by bisection and
compared. Every reply of every run is compared to TensorFlow's.

Settings: `model=DIR`, the example model's base path (`.cache/dlrm`; built if it is missing), and
`rounds=N`, in how many rounds the servers take turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.report import Claim, Options, Report, Row, missing
from benchmarks.server_process import DidNotStart, unwinding_on_sigterm
from benchmarks.serving_contest import Case, Contender, Disqualified, Watch, highest_by_round
from benchmarks.serving_requests import draw, load_signature
from benchmarks.serving_subjects import Drawn, Subject, ours, ray_serve, triton, triton_missing
from benchmarks.workloads import DlrmQueries
from examples.dlrm import EXTRA

SINGLE = Case("1 example, REST", bound=0.050, clients=64, seconds=3.0, tries=4)
BATCH = Case("270 examples, gRPC", bound=0.500, clients=4, seconds=8.0, tries=4)
BATCH_SIZE = 270
ROUNDS = 3
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
    rounds: int
    directory: Path
    watch: Watch
    rows: list[Row]

    @property
    def cases(self) -> tuple[Case, Case]:
        return self.single, self.batch

    def enter(self, stack: ExitStack, subjects: Sequence[Subject]) -> list[Contender]:
        """Start servers that run until `stack` is left; a row tells of one that does not."""
        return [
            contender
            for subject in subjects
            if (contender := self._enter(stack, subject)) is not None
        ]

    def _enter(self, stack: ExitStack, subject: Subject) -> Contender | None:
        directory = self.directory / f"{len(list(self.directory.iterdir()))}"
        with ExitStack() as trial:
            try:
                contender = trial.enter_context(Contender(subject, directory, self.watch))
                contender.get_ready(*self.cases)
            except (DidNotStart, Disqualified) as error:
                self.rows.append(missing(subject.name, str(error)))
                return None
            stack.push(trial.pop_all())
            return contender

    def compare(self, contenders: Sequence[Contender], case: Case) -> dict[str, list[float]]:
        """The highest rates of each round, and how each does at half of its own."""
        rates = highest_by_round(contenders, case, self.rounds)
        for contender in contenders:
            self._row(contender, case, "closed loop", "req/s", contender.capacity(case))
            promise = f"rate at p99 <= {case.bound * 1e3:.0f} ms"
            rate = statistics.median(rates[contender.name])
            self._row(contender, case, promise, "req/s", rate, contender.setting)
            if rate:
                half = contender.at(case, rate / 2)
                self._row(contender, case, "p50 at half that", "ms", half.percentile(50) * 1e3)
                self._row(contender, case, "p99 at half that", "ms", half.percentile(99) * 1e3)
        return rates

    def p99_ratio(self, sharded: Contender, unsharded: Contender, case: Case, rate: float) -> float:
        """Sharded over unsharded p99 at the same rate, the median of pairs in turns."""
        ratios = []
        for turn in range(PAIRS):
            pair = [sharded, unsharded]
            found = {
                contender.name: contender.at(case, rate).percentile(99)
                for contender in pair[:: -1 if turn % 2 else 1]
            }
            ratios.append(found[sharded.name] / found[unsharded.name])
        ratio = statistics.median(ratios)
        self.rows.append(Row(SHARDED, case.name, f"p99 / unsharded at {rate:.0f} req/s", "", ratio))
        return ratio

    def _row(
        self, contender: Contender, case: Case, metric: str, unit: str, value: float, note: str = ""
    ) -> None:
        self.rows.append(Row(contender.name, case.name, metric, unit, value, note))


def run(options: Options) -> Report:
    """Measure. Ends every server that it started, also when it is interrupted."""
    base_path = Path(options.settings.get("model", ".cache/dlrm"))
    _build(base_path)
    with unwinding_on_sigterm(), TemporaryDirectory(prefix="serving-") as directory:
        stand = _stand(options, Path(directory))
        drawn = _draw(base_path, options.quick)
        claims = [
            *_against_peers(stand, base_path, drawn),
            *_against_unsharded(stand, base_path, drawn),
        ]
        _without_batching(stand, base_path, drawn)
        return Report("serving", stand.rows, claims, [*_notes(stand), *stand.watch.describe()])


def _build(base_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "examples.dlrm", f"--out={base_path}"], check=True)


def _stand(options: Options, directory: Path) -> Stand:
    single, batch, rounds = SINGLE, BATCH, int(options.settings.get("rounds", ROUNDS))
    if options.quick:
        single, batch = (replace(case, seconds=1.0, tries=1) for case in (single, batch))
        rounds = 1
    return Stand(single, batch, rounds, directory, Watch(), [])


def _draw(base_path: Path, quick: bool) -> Drawn:
    parameters = json.loads((base_path / "1" / EXTRA / "parameters.json").read_text())
    queries = DlrmQueries(tuple(parameters["rows"]), tuple(parameters["hots"]), parameters["dense"])
    signature = load_signature(base_path / "1")
    singles, batches = (64, 4) if quick else (1024, 32)
    return Drawn(
        draw(signature, queries, 1, singles), draw(signature, queries, BATCH_SIZE, batches)
    )


def _against_peers(stand: Stand, base_path: Path, drawn: Drawn) -> Iterator[Claim]:
    """All servers run at once and take turns."""
    subjects = [
        ours(SHARDED, base_path, drawn, [*SHARDS, *BATCHING]),
        ray_serve(base_path, drawn, RAY_SERVE_WAYS),
    ]
    why_not = triton_missing()
    if why_not is None:
        subjects.append(triton(base_path, drawn, TRITON_DELAYS_US))
    else:
        stand.rows.append(missing("Triton", why_not))
    with ExitStack() as stack:
        contenders = stand.enter(stack, subjects)
        for case, name, to_reach in (
            (stand.single, "serving.rest_single_vs_best_peer", 2.0),
            (stand.batch, "serving.grpc_batch270_vs_best_peer", 1.0),
        ):
            rates = stand.compare(contenders, case)
            value, note = versus_best(rates.pop(SHARDED, []), rates)
            yield Claim(name, value, to_reach, note=note)


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


def _against_unsharded(stand: Stand, base_path: Path, drawn: Drawn) -> Iterator[Claim]:
    """Both at half of what the unsharded server can promise."""
    subjects = [
        ours(SHARDED, base_path, drawn, [*SHARDS, *BATCHING]),
        ours(UNSHARDED, base_path, drawn, [*WHOLE, *BATCHING]),
    ]
    ratios = {}
    with ExitStack() as stack:
        contenders = stand.enter(stack, subjects)
        if len(contenders) == len(subjects):
            sharded, unsharded = contenders
            for case in stand.cases:
                rate = stand.compare([unsharded], case)[UNSHARDED]
                ratios[case] = stand.p99_ratio(
                    sharded, unsharded, case, statistics.median(rate) / 2
                )
    note = ", ".join(f"{case.name} {ratio:.2f}" for case, ratio in ratios.items())
    yield Claim(
        "serving.sharded_p99_vs_unsharded",
        max(ratios.values()) if ratios else None,
        1.25,
        sense="at_most",
        note=f"the worse of {note}" if ratios else "not measured: a server is missing",
    )


def _without_batching(stand: Stand, base_path: Path, drawn: Drawn) -> None:
    with ExitStack() as stack:
        for contender in stand.enter(stack, [ours(UNBATCHED, base_path, drawn, SHARDS)]):
            stand.compare([contender], stand.single)


def _notes(stand: Stand) -> list[str]:
    load = (
        f"Poisson arrivals, {stand.single.seconds:g} s ({stand.single.name}) and "
        f"{stand.batch.seconds:g} s ({stand.batch.name}) for each rate, ids uniform; every reply "
        "was compared to TensorFlow's, to 1e-5 relative"
    )
    search = (
        f"Rates are found by bisection in {stand.single.tries} and {stand.batch.tries} tries, to "
        f"about {2**-stand.single.tries:.0%} of the closed loop's rate; medians of "
        f"{stand.rounds} rounds, in which the servers that are compared run at once and take turns"
    )
    settings = "Each peer was given the best of its settings for single examples, found in this run"
    return [load, search, settings]
