"""What the doors cost: tiny models over REST and gRPC, against bare servers and other systems.

Half-plus-two and the same of 1,000 numbers, one example a request, from 1, 32 and 128 connections
in a closed loop; the load comes from wrk and h2load. Bare echoes, on the HTTP and the gRPC server
that our doors are built on and behind Ray Serve's ingress, are what can be reached at all. One
server runs at a time; each is started anew for each of its turns, one reply of each kind is
checked, and each wire is warmed up.

`--set rounds=N` and `--set seconds=N` (whole seconds of each load) make it shorter or longer: about
15 minutes as it is, 6 with one round. `--set "only=A;B"` leaves all subjects out but those.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import ingress_load
from benchmarks.ingress_load import Load, LoadError
from benchmarks.ingress_models import MODELS, Arithmetic
from benchmarks.ingress_subjects import (
    GRPC_ECHO,
    HTTP_ECHO,
    LOCAL,
    SERVE_DOOR,
    SERVE_ECHO,
    SUBJECTS,
    TRITON,
    Server,
    Subject,
    answers,
)
from benchmarks.report import Claim, Options, Report, Row, missing
from benchmarks.server_process import DidNotStart, ServerProcess, unwinding_on_sigterm
from benchmarks.serving_contest import Watch
from benchmarks.serving_subjects import triton_missing

CLIENTS = (1, 32, 128)
#: At which servers are compared.
COMPARED = 32
SECONDS = 2
ROUNDS = 3
WARM_UP_SECONDS = 1
START_SECONDS = 120.0
REST, GRPC = "REST", "gRPC"


Case = tuple[str, str, str, int]


@dataclass
class Stand:
    """What was measured: by subject, model, wire and clients, a load for each round."""

    directory: Path
    seconds: int
    watch: Watch = field(default_factory=Watch)
    loads: dict[Case, list[Load]] = field(default_factory=lambda: defaultdict(list))
    absent: dict[str, str] = field(default_factory=dict)

    def turn(self, name: str, subject: Subject, model: Arithmetic) -> None:
        """One turn of one subject with one model."""
        # Its name is short: HAProxy's socket lies below it, and a socket's path is.
        directory = self.directory / str(len(list(self.directory.iterdir())))
        directory.mkdir()
        server = subject(model, model.export(self.directory / model.name), directory)
        try:
            with ServerProcess(server.command, directory / "log", server.env) as process:
                process.wait_until(lambda: answers(server, model), START_SECONDS)
                for _, load in _loads(server, COMPARED, WARM_UP_SECONDS, directory):
                    load()
                for clients in CLIENTS:
                    self._measure(name, model, server, clients, directory)
        except (DidNotStart, LoadError) as error:
            self.absent[name] = str(error)
            self.watch.say(f"{name}: {error}")

    def _measure(
        self, name: str, model: Arithmetic, server: Server, clients: int, directory: Path
    ) -> None:
        for wire, load in _loads(server, clients, self.seconds, directory):
            self._note(name, model, wire, clients, load())

    def _note(self, name: str, model: Arithmetic, wire: str, clients: int, load: Load) -> None:
        self.loads[name, model.name, wire, clients].append(load)
        self.watch.say(f"{name}: {model.name}, {wire}, {clients} clients: {load.rate:,.0f}/s")

    def rate(self, name: str, model: str, wire: str) -> float | None:
        """The median rate of those that are compared."""
        loads = self.loads.get((name, model, wire, COMPARED))
        return statistics.median(load.rate for load in loads) if loads else None


def _loads(
    server: Server, clients: int, seconds: int, directory: Path
) -> Iterator[tuple[str, Callable[[], Load]]]:
    """By the wires that the server has, what puts a load on it."""
    if server.rest:
        one = server.rest
        yield REST, partial(ingress_load.rest, one.url, one.body, clients, seconds, directory)
    if server.grpc:
        call = server.grpc
        message = (call.method, call.message)
        yield GRPC, partial(ingress_load.grpc, call.port, *message, clients, seconds, directory)


def run(options: Options) -> Report:
    """Measure. Ends every server that it started, also when it is interrupted."""
    why_not = ingress_load.tools_missing()
    if why_not is not None:
        return Report("ingress", [missing("all", why_not)], _claims(None))
    seconds = int(options.settings.get("seconds", 1 if options.quick else SECONDS))
    rounds = int(options.settings.get("rounds", 1 if options.quick else ROUNDS))
    only = options.settings.get("only", ";".join(SUBJECTS)).split(";")
    with unwinding_on_sigterm(), TemporaryDirectory(prefix="in-") as directory:
        stand = Stand(Path(directory), seconds)
        if (why_not := triton_missing()) is not None:
            stand.absent[TRITON] = why_not
        for turn in range(rounds):
            for name, subject in list(SUBJECTS.items())[:: -1 if turn % 2 else 1]:
                for model in MODELS:
                    if name in only and name not in stand.absent:
                        stand.turn(name, subject, model)
    return Report("ingress", _rows(stand), _claims(stand), _notes(rounds, seconds))


def _rows(stand: Stand) -> list[Row]:
    rows = [missing(name, why) for name, why in stand.absent.items()]
    for (name, model, wire, clients), loads in stand.loads.items():
        case = f"{model}, {wire}, {clients} clients"
        rate, p50, p99 = (
            statistics.median(getattr(load, what) for load in loads)
            for what in ("rate", "p50", "p99")
        )
        rows.append(Row(name, case, "rate", "req/s", rate))
        rows.append(Row(name, case, "p50", "ms", p50 * 1e3))
        rows.append(Row(name, case, "p99", "ms", p99 * 1e3))
    return rows


#: Claim, what is to be reached, and the pairs (ours, theirs, wire) of which the worst counts.
_CLAIMS = (
    ("ingress.rest_vs_bare_server", 0.5, ((LOCAL, HTTP_ECHO, REST),)),
    ("ingress.grpc_vs_bare_server", 0.6, ((LOCAL, GRPC_ECHO, GRPC),)),
    ("ingress.direct_vs_triton", 5.0, ((LOCAL, TRITON, REST), (LOCAL, TRITON, GRPC))),
    (
        "ingress.serve_vs_serve_echo",
        0.8,
        ((SERVE_DOOR, SERVE_ECHO, REST), (SERVE_DOOR, SERVE_ECHO, GRPC)),
    ),
)


def _claims(stand: Stand | None) -> list[Claim]:
    claims = []
    for name, to_reach, pairs in _CLAIMS:
        ratios = {}
        for ours, theirs, wire in pairs:
            for model in MODELS:
                rates = [stand and stand.rate(who, model.name, wire) for who in (ours, theirs)]
                ratios[f"{model.name} {wire}"] = rates[0] / rates[1] if all(rates) else None  # type: ignore[operator]
        value = min(ratios.values()) if all(ratios.values()) else None  # type: ignore[type-var]
        shown = ", ".join(
            f"{case} {'-' if ratio is None else f'{ratio:.2f}'}" for case, ratio in ratios.items()
        )
        claims.append(Claim(name, value, to_reach, note=f"the worst of {shown}"))
    return claims


def _notes(rounds: int, seconds: int) -> list[str]:
    return [
        f"Rates are compared at {COMPARED} clients; medians of {rounds} rounds of {seconds} s",
        "wrk and h2load run on the servers' own cores, and take a good part of one",
        "TensorFlow Serving, measured on such a machine: 18,474 half-plus-two REST requests/s",
    ]
