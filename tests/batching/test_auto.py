"""The timeout and the size that hold a target, on a simulated device and clock."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from shardserve.batching.pace import InFlight
from shardserve.batching.parameters import Auto, BatchingParameters
from shardserve.batching.scheduler import BatchScheduler
from shardserve.batching.tasks import Actions, Priority, Run, Task, WakeAt

TARGET = 0.030


class Simulation:
    """Tasks of one row arrive by chance; a device runs one batch at a time. Time is made up."""

    def __init__(self, parameters: BatchingParameters, takes: Callable[[int], float]) -> None:
        self.core: BatchScheduler[float] = BatchScheduler(InFlight(1, 1))
        self.stage = self.core.add_stage("stage", parameters)
        self.takes = takes
        self.latencies: list[tuple[float, float]] = []
        self.timeouts: list[tuple[float, float]] = []
        self.sizes: list[int] = []
        self._rng = np.random.default_rng(0)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []

    def run(self, rates: Sequence[tuple[float, float]]) -> None:
        """`rates` are seconds and the tasks a second that come then, one after the other."""
        now = 0.0
        for seconds, rate in rates:
            ends = now + seconds
            while (now := now + self._rng.exponential(1 / rate)) < ends:
                self.at(now, self._offer)
        while self._events:
            time, _, event = heapq.heappop(self._events)
            event(time)

    def p99(self, since: float, until: float) -> float:
        return float(np.percentile([s for t, s in self.latencies if since <= t < until], 99))

    def at(self, time: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def _offer(self, now: float) -> None:
        queue = self.stage.queue("k", Priority.HIGH)
        self._perform(self.core.offer(queue, Task(now, 1), now), now)

    def _perform(self, actions: Actions[float], now: float) -> None:
        for action in actions:
            match action:
                case Run(batch):
                    self.sizes.append(batch.size)
                    done = now + self.takes(batch.size)
                    self.at(done, lambda time, batch=batch: self._finish(batch, time))
                case WakeAt(time):
                    self.at(max(now, time), lambda time: self._perform(self.core.tick(time), time))

    def _finish(self, batch, now: float) -> None:
        self.latencies += [(now, now - task.payload) for task in batch.tasks]
        self._perform(self.core.finished(batch, now), now)
        self.timeouts.append((now, self.stage.timeout))


def simulated(rates: Sequence[tuple[float, float]], takes: Callable[[int], float]) -> Simulation:
    parameters = BatchingParameters(
        max_batch_size=512,
        batch_timeout_micros=Auto(round(TARGET * 1e6)),
        max_enqueued_batches=1000,
    )
    simulation = Simulation(parameters, takes)
    simulation.run(rates)
    return simulation


def line(rows: int) -> float:
    """A device that gains much from batching."""
    return 0.002 + rows * 20e-6


def steps(rows: int) -> float:
    """One that runs padded sizes."""
    return 0.004 * math.ceil(rows / 64)


@pytest.mark.parametrize("takes", [line, steps])
def test_the_target_is_held_under_steps_of_the_load(takes):
    run = simulated([(3, 100), (3, 3000), (3, 10000), (3, 300)], takes)
    for start in (0, 3, 6, 9):
        assert run.p99(start + 1, start + 3) <= TARGET


def test_a_light_load_does_not_wait():
    run = simulated([(5, 50)], line)
    assert run.stage.timeout == 0
    assert run.p99(1, 5) < 0.006


def test_under_load_batches_gather_so_that_the_device_has_time_to_spare():
    run = simulated([(5, 2000)], line)
    assert run.stage.timeout > 0
    assert np.mean(run.sizes[-200:]) > 4
    assert run.stage.counts().timeout_micros == round(run.stage.timeout * 1e6)


def test_the_choice_settles():
    run = simulated([(8, 4000)], line)
    late = np.array([timeout for time, timeout in run.timeouts if time > 3])
    assert np.std(late) < 0.5 * np.mean(late) + 1e-4
    assert np.abs(np.diff(late)).sum() / len(late) < 0.1 * np.mean(late) + 1e-5


def test_the_size_leaves_time_for_a_batch_before():
    slow = simulated([(4, 300)], lambda rows: 0.001 + rows * 0.001)
    assert slow.stage.size <= 14
    assert slow.p99(1, 4) <= TARGET


def test_it_finds_back_from_a_stall_that_filled_the_queue() -> None:
    parameters = BatchingParameters(
        max_batch_size=64,
        batch_timeout_micros=Auto(round(TARGET * 1e6)),
        max_enqueued_batches=100_000,
    )
    slower = [1.0]
    simulation = Simulation(parameters, lambda rows: slower[0] * line(rows))
    simulation.at(2.0, lambda _: slower.__setitem__(0, 30.0))
    simulation.at(3.0, lambda _: slower.__setitem__(0, 1.0))
    simulation.run([(12.0, 3000.0)])
    assert simulation.p99(10.0, 12.0) <= TARGET
