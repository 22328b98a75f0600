"""A stopwatch tells work that waits from work whose core the system took away."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

from shardserve.router.stopwatch import Stopwatch

#: Of two threads that wait for each other, one has to in one of so many rounds.
ROUNDS = 100


def test_work_that_waits_for_something_has_held_its_thread_up_meanwhile() -> None:
    asked: SimpleQueue[int] = SimpleQueue()
    answers: SimpleQueue[int] = SimpleQueue()
    other = threading.Thread(target=lambda: [answers.put(asked.get()) for _ in range(ROUNDS)])
    other.start()
    stopwatch = Stopwatch()
    started = time.monotonic()
    for number in range(ROUNDS):
        asked.put(number)
        assert answers.get() == number
    passed = time.monotonic() - started
    assert stopwatch.held() >= passed
    other.join()


def test_work_that_waits_for_nothing_has_held_its_thread_up_for_what_it_had_of_a_core() -> None:
    def without_waiting() -> bool:
        stopwatch = Stopwatch()
        sum(range(20_000))
        return stopwatch.held() <= stopwatch.own()

    # Another thread of this process may make it wait for the interpreter, now and then.
    assert any(without_waiting() for _ in range(1000))
