"""Stages that batch separately, against whole requests that batch, against none: open loop.

Three models: the example DLRM, and two of uneven stages (`benchmarks.uneven_model`). Of those one
is sent a document as a list of passages, so that requests differ in shape: whole requests have to
be padded to be joined, and stages need not be, since what comes from the shards is as wide for
each. The other is sent it as one string, and nothing is to be padded. Each server is started anew
for each of its turns, and measured alone: the highest rate at which the 99th
percentile of the latencies, counted from the intended time of sending, stays within `BOUND` and
every reply is TensorFlow's; the 99th percentile at half of what the unbatched server promises (of
what it does in a closed loop, if it promises nothing); and for the stages, what is answered rightly
and in time, a second, at up to three times the load that saturates it, with a deadline of `BOUND`
on every request. Either way to batch has the best of its settings, found in this run.

Settings: `model=DIR`, the example model's base path (`.cache/dlrm`); `uneven=DIR`, where the others
are (`.cache/uneven`); all are built if they are missing; `rounds=N`, for those of uneven stages;
`only=passages`, `only=text`, `only=DLRM`, to leave the others out.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.batching_section import Section
from benchmarks.report import Claim, Options, Row
from benchmarks.server_process import ServerProcess, unwinding_on_sigterm
from benchmarks.serving_contest import RUNS_TO_FAIL, Watch
from benchmarks.serving_load import Generator, Measured, Target, Workload
from benchmarks.serving_requests import (
    Inputs,
    draw,
    load_signature,
    rest_predictions,
    rest_rows,
)
from benchmarks.serving_search import Bracket, highest_rate
from benchmarks.serving_subjects import MODEL, OurPorts, haproxy_files, is_available
from benchmarks.uneven_model import Documents, UnevenConfig, export
from benchmarks.workloads import DlrmQueries
from examples.dlrm import EXTRA
from shardserve.router.metric_families import OF_STAGES
from shardserve.router.rest import MONITORING_PATH

#: In seconds: of the 99th percentile, and the deadline of every request under overload.
BOUND = 0.030
ROUNDS = 3
RUN_SECONDS = 3.0
OVERLOAD_SECONDS = 5.0
CLIENTS = 64
TRIES = 4
START_SECONDS = 120.0
#: Of the rate that saturates the server.
LOADS = (0.7, 0.85, 1.0, 1.2)
OVERLOAD = 3.0

SERVER = ("--shards=2", "--tensorflow_intra_op_parallelism=1")
UNBATCHED, WHOLE, STAGES = "no batching", "whole requests", "stages"
PASSAGES, TEXT, DLRM = "passages", "text", "DLRM"
#: Words of a passage, and how many of its n-grams are looked up: of a document of median length
#: about as many as of one that is a string.
PASSAGE, GRAMS_OF_A_PASSAGE = 100, 24
#: The counter in which it shows that requests are batched that way, and for which stage.
BATCHES = OF_STAGES["batches"].name
QUEUES = {WHOLE: "requests", STAGES: "dense"}


@dataclass(frozen=True)
class Model:
    """A model to serve, single examples to send with the right answers, and ways to join them."""

    name: str
    base_path: Path
    workload: Workload
    settings: Mapping[str, tuple[Way, ...]]


@dataclass(frozen=True)
class Way:
    """A way to batch, with one setting of it. A `max_batch_size` of 0 is none.

    With a `group`, up to so many requests, of those that wait, walk through the stages together.
    Requests of different shapes are joined where it `pads` them.
    """

    name: str
    max_batch_size: int = 0
    group: int = 0
    pads: bool = False

    def flags(self, directory: Path) -> list[str]:
        """What to add to the command line; files go to `directory`."""
        if not self.max_batch_size:
            return []
        file = directory / "stages.yaml"
        queue = {"max_enqueued_batches": 100}
        stage = "requests" if self.name == WHOLE else "dense"
        padding = {"pad_variable_length_inputs": True} if self.pads else {}
        stages = {stage: {"max_batch_size": self.max_batch_size, **queue, **padding}}
        if self.group:
            walking = {"max_batch_size": self.group, "num_batch_threads": GROUPS, **queue}
            stages["requests"] = walking
        file.write_text(json.dumps({"version": 1, "stages": stages}))
        return ["--enable_batching", f"--stages_file={file}"]

    def __str__(self) -> str:
        if not self.max_batch_size:
            return ""
        groups = f", in groups of {self.group}" if self.group else ""
        return f"max_batch_size {self.max_batch_size}{groups}{', padded' if self.pads else ''}"


#: Groups of requests that are under way at once.
GROUPS = 4
#: The settings of each way to batch, of which it gets the best.
SETTINGS = {
    WHOLE: (Way(WHOLE, 8), Way(WHOLE, 16)),
    STAGES: (Way(STAGES, 32), Way(STAGES, 32, group=8)),
}
#: Of requests that differ in shape. Without padding only those of one shape are joined.
SETTINGS_OF_SHAPES = {
    WHOLE: (*(Way(WHOLE, size, pads=True) for size in (2, 4, 8, 16)), Way(WHOLE, 8)),
    STAGES: (Way(STAGES, 32),),
}


@dataclass
class Record:
    """What one way did with one model, turn by turn: rates in requests/s, latencies in seconds."""

    rates: list[float] = field(default_factory=list)
    half_load: list[float] = field(default_factory=list)
    capacities: list[float] = field(default_factory=list)


@dataclass
class Stand:
    """Where ways are measured, and what was found so far."""

    directory: Path
    watch: Watch = field(default_factory=Watch)
    quick: bool = False
    records: dict[tuple[str, str], Record] = field(default_factory=lambda: defaultdict(Record))
    chosen: dict[tuple[str, str], Way] = field(default_factory=dict)
    common: dict[str, float] = field(default_factory=dict)

    def best(self, model: Model, name: str) -> Way:
        """The best setting of a way to batch, by the rate that it promises in two tries.

        Of those that promise nothing then, the one that does most in a closed loop.
        """
        if (model.name, name) not in self.chosen:
            ways = model.settings[name][: 1 if self.quick else None]
            found = {way: self._promise(model, way) for way in ways} if len(ways) > 1 else {}
            self.chosen[model.name, name] = max(ways, key=lambda way: found.get(way, (0.0, 0.0)))
        return self.chosen[model.name, name]

    def _promise(self, model: Model, way: Way) -> tuple[float, float]:
        with self.serving(model, way) as generator:
            capacity, rate = promised(generator, self._seconds, tries=2)
            return rate, capacity

    @property
    def _seconds(self) -> float:
        return 1.0 if self.quick else RUN_SECONDS

    def turn(self, model: Model, way: Way) -> None:
        """One turn: the rate it promises, and its latency at the common rate."""
        record = self.records[model.name, way.name]
        with self.serving(model, way) as generator:
            capacity, rate = promised(generator, self._seconds, 1 if self.quick else TRIES)
            record.capacities.append(capacity)
            record.rates.append(rate)
            if way.name == UNBATCHED:
                # One that keeps the bound at no rate that was tried still has a half load.
                self.common.setdefault(model.name, (rate or capacity) / 2)
            at = generator.open_loop(
                self.common[model.name], 2 * self._seconds, 100 * BOUND, seed=len(record.rates)
            )
            record.half_load.append(at.percentile(99))
        self.watch.say(f"{model.name}, {way.name} {way}: {rate:.0f}/s of {capacity:.0f}/s")

    @contextmanager
    def serving(self, model: Model, way: Way, *flags: str) -> Iterator[Generator]:
        """A server of its own, and a load generator aimed at it; both end with the block."""
        # Its name is short: HAProxy's socket lies below it, and a socket's path is.
        directory = self.directory / str(len(list(self.directory.iterdir())))
        directory.mkdir()
        ports = OurPorts.free()
        more = (*SERVER, *way.flags(directory), *flags)
        command = ports.command(MODEL, model.base_path, more)
        target = Target("rest", ports.rest, f"/v1/models/{MODEL}:predict")
        with ServerProcess(command, directory / "log", haproxy_files(directory)) as server:
            server.wait_until(lambda: is_available(ports.rest), START_SECONDS)
            with Generator(target, model.workload) as generator:
                generator.closed_loop(2, 0.5)
                checked = generator.closed_loop(1, 1.0)
                if checked.wrong_answer or not checked.completed_rate:
                    raise RuntimeError(f"{model.name}, {way.name}: {checked.first_error}")
                check_batches(model, way, ports.rest)
                yield generator


def check_batches(model: Model, way: Way, rest_port: int) -> None:
    """Raises RuntimeError if a server does not batch the way it is measured for.

    A stage that is not known to keep rows apart is batched with whole requests.
    """
    if way.name in QUEUES:
        url = f"http://127.0.0.1:{rest_port}{MONITORING_PATH}"
        with urllib.request.urlopen(url, timeout=START_SECONDS) as page:
            started = batches_started(page.read().decode(), QUEUES[way.name])
        if not started:
            raise RuntimeError(f"{model.name}: {way.name} are not batched")


def batches_started(page: str, stage: str) -> float:
    """How many batches a page of metrics counts of the stages of this name."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if family.name == BATCHES and sample.labels["stage"] == stage
    )


def promised(generator: Generator, seconds: float, tries: int) -> tuple[float, float]:
    """Requests/s in a closed loop, and the highest rate that keeps the bound."""
    capacity = generator.closed_loop(CLIENTS, seconds).completed_rate
    seeds = iter(range(1_000_000))

    def holds(rate: float) -> bool:
        runs = (
            generator.open_loop(rate, seconds, 3 * BOUND, next(seeds)) for _ in range(RUNS_TO_FAIL)
        )
        return any(run.percentile(99) <= BOUND for run in runs)

    return capacity, highest_rate(Bracket.around(capacity), holds, tries)


@dataclass(frozen=True)
class Overload:
    """One load on a server whose every request has a deadline of `BOUND`."""

    load: float
    rate: float
    goodput: float
    p99: float

    @classmethod
    def of(cls, load: float, rate: float, run: Measured) -> Overload:
        answered = run.latencies[np.isfinite(run.latencies)]
        in_time = float((answered <= BOUND).sum()) / OVERLOAD_SECONDS
        p99 = float(np.percentile(answered, 99)) if len(answered) else float("nan")
        return cls(load, rate, in_time, p99)


def overload(stand: Stand, model: Model, way: Way, saturating: float) -> list[Overload]:
    """Goodput at each of `LOADS`, and then at `OVERLOAD`, of the rate that saturates a server.

    That is measured where requests have all the time they need: here some are refused.
    """
    found = []
    with stand.serving(model, way, f"--rest_api_timeout_in_ms={BOUND * 1e3:.0f}") as generator:
        for number, load in enumerate((*LOADS, OVERLOAD)):
            rate = load * saturating
            run = generator.open_loop(rate, OVERLOAD_SECONDS, 100.0, number)
            found.append(Overload.of(load, rate, run))
            stand.watch.say(f"{model.name}, {way.name}: {found[-1]}")
    return found


def measure(options: Options) -> Section:
    """Measure. Ends every server that it started, also when it is interrupted."""
    quick = options.quick
    with unwinding_on_sigterm(), TemporaryDirectory(prefix="ba-") as directory:
        stand = Stand(Path(directory), quick=quick)
        turns = int(options.settings.get("rounds", ROUNDS))
        only = options.settings.get("only", "")
        loads: list[Overload] = []
        for name, (make, rounds) in _models(turns).items():
            if only in ("", name):
                model = make(options)
                _turns(stand, model, 1 if quick else rounds)
                if name == PASSAGES:
                    loads = _overload(stand, model)
    return Section(_rows(stand, loads), _claims(stand, loads), _notes(stand))


def _models(turns: int) -> dict[str, tuple[Callable[[Options], Model], int]]:
    """Who makes each model, and its rounds, by its name."""
    return {PASSAGES: (_passages, turns), TEXT: (_text, turns), DLRM: (_dlrm, 1)}


def _turns(stand: Stand, model: Model, rounds: int) -> None:
    for _ in range(rounds):
        stand.turn(model, Way(UNBATCHED))
        for name in (WHOLE, STAGES):
            stand.turn(model, stand.best(model, name))


def _overload(stand: Stand, model: Model) -> list[Overload]:
    saturating = statistics.median(stand.records[model.name, STAGES].capacities)
    return overload(stand, model, stand.best(model, STAGES), saturating)


def _passages(options: Options) -> Model:
    config = UnevenConfig(grams=GRAMS_OF_A_PASSAGE, passages=True)
    return _uneven(options, PASSAGES, config, Documents(passage=PASSAGE), SETTINGS_OF_SHAPES)


def _text(options: Options) -> Model:
    return _uneven(options, TEXT, UnevenConfig(), Documents(), SETTINGS)


def _uneven(
    options: Options,
    name: str,
    config: UnevenConfig,
    documents: Documents,
    settings: Mapping[str, tuple[Way, ...]],
) -> Model:
    base_path = Path(options.settings.get("uneven", ".cache/uneven")) / name
    signature = load_signature(export(config, base_path))
    queries = draw(signature, documents, 1, 64 if options.quick else 1024)
    workload = queries.encoded(_text_rows, rest_predictions)
    return Model(name, base_path, workload, settings)


def _dlrm(options: Options) -> Model:
    base_path = Path(options.settings.get("model", ".cache/dlrm"))
    subprocess.run([sys.executable, "-m", "examples.dlrm", f"--out={base_path}"], check=True)
    parameters = json.loads((base_path / "1" / EXTRA / "parameters.json").read_text())
    queries = DlrmQueries(tuple(parameters["rows"]), tuple(parameters["hots"]), parameters["dense"])
    drawn = draw(load_signature(base_path / "1"), queries, 1, 64 if options.quick else 1024)
    return Model(DLRM, base_path, drawn.encoded(rest_rows, rest_predictions), SETTINGS)


def _text_rows(inputs: Inputs) -> bytes:
    texts = {n: v.astype(str) if v.dtype == object else v for n, v in inputs.items()}
    size = len(next(iter(texts.values())))
    rows = [{name: value[row].tolist() for name, value in texts.items()} for row in range(size)]
    return orjson.dumps({"instances": rows})


def _rows(stand: Stand, loads: Sequence[Overload]) -> list[Row]:
    rows = []
    for (model, name), record in stand.records.items():
        note = str(stand.chosen.get((model, name), ""))
        figures = {
            ("closed loop", "req/s"): record.capacities,
            (f"rate at p99 <= {BOUND * 1e3:.0f} ms", "req/s"): record.rates,
            (f"p99 at {stand.common[model]:.0f} req/s", "ms"): [1e3 * s for s in record.half_load],
        }
        for (metric, unit), values in figures.items():
            if values:
                rows.append(Row(name, model, metric, unit, statistics.median(values), note))
    for one in loads:
        case = f"{PASSAGES}, {one.load:g} of saturation"
        rows.append(
            Row(STAGES, case, "goodput", "req/s", one.goodput, f"{one.rate:.0f} req/s sent")
        )
        rows.append(Row(STAGES, case, "p99 of those answered", "ms", one.p99 * 1e3))
    return rows


def _claims(stand: Stand, loads: Sequence[Overload]) -> list[Claim]:
    return [
        *_claims_of(stand, PASSAGES, ""),
        *_claims_of(stand, TEXT, "_of_text"),
        *_claims_of_overload(loads),
    ]


def _claims_of(stand: Stand, model: str, suffix: str) -> list[Claim]:
    """A model's, if it was measured."""
    if (model, STAGES) not in stand.records:
        return []
    whole, stages, none = (stand.records[model, name] for name in (WHOLE, STAGES, UNBATCHED))
    ratios = [one / other for one, other in zip(stages.rates, whole.rates, strict=True) if other]
    ratio = statistics.median(ratios) if len(ratios) == len(whole.rates) else None
    shown = "by round " + ", ".join(f"{one:.2f}" for one in ratios)
    later = [a - b for a, b in zip(stages.half_load, none.half_load, strict=True)]
    slower = statistics.median(later) * 1e3 if later else None
    half = f"batching.p99_at_half_load_over_unbatched_ms{suffix}"
    return [
        Claim(f"batching.stages_vs_whole_model{suffix}", ratio, 1.5, note=shown),
        Claim(half, slower, 1.0, sense="at_most"),
    ]


def _claims_of_overload(loads: Sequence[Overload]) -> list[Claim]:
    if not loads:
        return []
    peak, at_three = max(one.goodput for one in loads[:-1]), loads[-1]
    return [
        Claim("batching.goodput_at_3x_vs_peak", at_three.goodput / peak if peak else None, 0.9),
        Claim(
            "batching.p99_at_3x_vs_deadline",
            at_three.p99 / BOUND,
            1.0,
            sense="at_most",
            note="of those answered",
        ),
    ]


def _notes(stand: Stand) -> list[str]:
    load = (
        "Stages and whole requests: single examples over REST, Poisson arrivals, "
        f"{RUN_SECONDS:g} s for each rate, {' '.join(SERVER)}; every reply was compared to "
        "TensorFlow's, to 1e-5 relative; each way to batch has the best of its settings of this run"
    )
    return [load, *stand.watch.describe()]
