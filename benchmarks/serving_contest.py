"""How a running server is measured: checked first, then by the rate that it can promise."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil
from rich.console import Console

from benchmarks.server_process import ServerProcess
from benchmarks.serving_load import Generator, Measured, Target, Workload
from benchmarks.serving_search import Bracket, highest_rate
from benchmarks.serving_subjects import START_SECONDS, Setting, Subject

CHECK_SECONDS = 1.0
#: Runs of a rate that is to fail: what else goes on in a machine can only make one fail.
RUNS_TO_FAIL = 2


class Disqualified(RuntimeError):
    """A server gave an answer that is not TensorFlow's, or none where it had nothing else to do."""


@dataclass(frozen=True)
class Case:
    """One kind of request, and the promise whose highest rate is looked for.

    A rate holds if every request of `seconds` of it is answered, and right, and the 99th percentile
    of the latencies is at most `bound` seconds. `clients` are those of a closed loop, which finds
    out where to look; `tries` says for how long.
    """

    name: str
    bound: float
    clients: int
    seconds: float
    tries: int

    @property
    def give_up(self) -> float:
        """Once a request has waited for this long the rate does not hold, whatever comes."""
        return 3 * self.bound

    @property
    def promise(self) -> str:
        return f"rate at p99 <= {self.bound * 1e3:.0f} ms"


@dataclass
class Watch:
    """What went on besides: how late the generator was, and how busy the machine with others."""

    lags: list[float] = field(default_factory=list)
    generator_cpu: list[float] = field(default_factory=list)
    others_cpu: list[float] = field(default_factory=list)
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    def say(self, text: str) -> None:
        """Progress, for whoever waits."""
        self.console.print(text, markup=False)

    def describe(self) -> list[str]:
        """For a report's notes."""
        if not self.lags:
            return []
        lag, cpu, others = map(statistics.median, (self.lags, self.generator_cpu, self.others_cpu))
        generator = (
            f"The load generator sent {lag * 1e3:.2f} ms late at the 99th percentile (median of "
            f"the runs), which latencies include, and took {cpu:.0%} of a core"
        )
        machine = (
            "Everything else on this machine, the idle servers included, took "
            f"{others:.2f} cores (median of the runs)"
        )
        return [generator, machine]


class Contender:
    """A running server with a load generator for each case. A context manager: ends both.

    `disqualified` says why nothing that it does counts any more, empty if all does.
    """

    def __init__(self, subject: Subject, directory: Path, watch: Watch) -> None:
        self.subject = subject
        self.setting = ""
        self.disqualified = ""
        self._watch = watch
        self._seeds = itertools.count()
        self._capacities: dict[str, float] = {}
        self._generators: dict[str, Generator] = {}
        self._exits = ExitStack()
        self._server: ServerProcess = self._exits.enter_context(subject.start(directory))

    @property
    def name(self) -> str:
        return self.subject.name

    def get_ready(self, single: Case, batch: Case, chosen: Setting | None = None) -> Setting:
        """Wait for the server, check its answers, use its best setting, and return that.

        With `chosen`, uses that. Raises DidNotStart or Disqualified.
        """
        seconds = self._server.wait_until(lambda: self.subject.ready(self._server), START_SECONDS)
        self._watch.say(f"{self.name}: ready after {seconds:.1f} s")
        self._aim(batch, *self.subject.grpc)
        settings = [chosen] if chosen else self.subject.settings
        if len(settings) > 1:
            best = max(settings, key=lambda setting: self._try(setting, single))
        else:
            best = settings[0]
        self._use(best, single)
        return best

    def _try(self, setting: Setting, case: Case) -> tuple[float, float]:
        self._use(setting, case)
        return self.highest(case, tries=2), self._capacities[case.name]

    def _use(self, setting: Setting, case: Case) -> None:
        setting.apply()
        self.setting = setting.name
        self._aim(case, *setting.rest)

    def _aim(self, case: Case, target: Target, workload: Workload) -> None:
        generator = self._exits.enter_context(Generator(target, workload))
        self._generators[case.name] = generator
        self._capacities.pop(case.name, None)
        checked = generator.closed_loop(2, CHECK_SECONDS)
        if checked.errors:
            raise Disqualified(f"{case.name}: {checked.first_error}")

    def capacity(self, case: Case) -> float:
        """Requests a second in a closed loop; measured once."""
        if case.name not in self._capacities:
            generator = self._generators[case.name]
            measured = self._watched(
                lambda: generator.closed_loop(case.clients, case.seconds / 2), case
            )
            self._capacities[case.name] = measured.completed_rate
        return self._capacities[case.name]

    def highest(self, case: Case, tries: int | None = None) -> float:
        """The highest rate that keeps the case's promise, requests a second; 0 if none did."""
        capacity = self.capacity(case)
        found = (
            highest_rate(
                Bracket.around(capacity), lambda rate: self.holds(case, rate), tries or case.tries
            )
            if capacity
            else 0.0
        )
        self._watch.say(
            f"{self.name} {self.setting}: {case.name}: {capacity:.1f}/s in a closed loop, "
            f"{found:.1f}/s at p99 <= {case.bound * 1e3:.0f} ms"
        )
        return found

    def holds(self, case: Case, rate: float) -> bool:
        """Whether the server keeps the case's promise at a rate, in any of RUNS_TO_FAIL runs."""
        return any(self.at(case, rate).percentile(99) <= case.bound for _ in range(RUNS_TO_FAIL))

    def at(self, case: Case, rate: float) -> Measured:
        """The case's load at one rate."""
        generator, seed = self._generators[case.name], next(self._seeds)
        return self._watched(
            lambda: generator.open_loop(rate, case.seconds, case.give_up, seed), case
        )

    def _watched(self, measure: Callable[[], Measured], case: Case) -> Measured:
        busy, own = _busy_seconds(), self._server.cpu_seconds()
        measured = measure()
        served = self._server.cpu_seconds() - own
        others = _busy_seconds() - busy - served - measured.generator_cpu
        self._watch.lags.append(measured.lag_p99)
        self._watch.generator_cpu.append(measured.generator_cpu / measured.seconds)
        self._watch.others_cpu.append(max(0.0, others / measured.seconds))
        if measured.wrong_answer:
            self.disqualified = f"{case.name}: {measured.wrong_answer}"
        if self.disqualified:
            measured.latencies[:] = np.inf
        return measured

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exits.close()


def _busy_seconds() -> float:
    """Seconds that all cores of this machine have spent on anything, so far."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)
