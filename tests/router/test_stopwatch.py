"""A stopwatch tells work that waits from work whose core the system took away."""

from __future__ import annotations

import subprocess
import sys
import time

from shardserve.router.stopwatch import Stopwatch


def test_work_that_waits_for_something_has_held_its_thread_up_meanwhile() -> None:
    started = time.monotonic()
    stopwatch = Stopwatch()
    subprocess.run([sys.executable, "-S", "-c", "pass"], check=True)
    passed = time.monotonic() - started
    assert stopwatch.own() < stopwatch.held()
    assert stopwatch.held() >= passed * 0.9


def test_work_that_waits_for_nothing_has_held_its_thread_up_for_what_it_had_of_a_core() -> None:
    def without_waiting() -> bool:
        stopwatch = Stopwatch()
        sum(range(20_000))
        return stopwatch.held() <= stopwatch.own()

    # Another thread of this process may make it wait for the interpreter, now and then.
    assert any(without_waiting() for _ in range(1000))
