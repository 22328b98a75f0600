from __future__ import annotations

import json

import numpy as np

from benchmarks.load_starts import title
from benchmarks.serving_load import WRONG, Measured, Workload


def decode(reply: bytes) -> np.ndarray:
    return np.array(json.loads(reply), np.float32)


ANSWERS = [np.array([0.5], np.float32), np.array([0.25], np.float32)]
WORKLOAD = Workload([b"first", b"second"], ANSWERS, decode)


def test_each_reply_is_held_against_the_answer_to_its_own_request() -> None:
    assert WORKLOAD.why_wrong(0, b"[0.5]") is None
    assert WORKLOAD.why_wrong(3, b"[0.25000001]") is None
    assert str(WORKLOAD.why_wrong(1, b"[0.5]")).startswith(WRONG)
    assert str(WORKLOAD.why_wrong(0, b"[0.5, 0.5]")).startswith(WRONG)


def test_errors_and_unreadable_replies_are_told_apart_from_wrong_answers() -> None:
    assert WORKLOAD.why_wrong(0, "503: busy") == "503: busy"
    assert str(WORKLOAD.why_wrong(0, b"{")).startswith("unreadable reply")


def measured(latencies: list[float], errors: int = 0) -> Measured:
    return Measured(np.array(latencies), np.zeros(1), 2.0, 0.0, errors)


def test_percentiles_are_latencies_that_were_measured() -> None:
    run = measured([float(number) for number in range(1, 101)])
    assert run.percentile(50) == 50.0
    assert run.percentile(99) == 99.0


def test_an_unanswered_request_counts_as_slower_than_any_other() -> None:
    run = measured([1.0] * 97 + [np.inf] * 3, errors=3)
    assert run.percentile(99) == np.inf
    assert run.percentile(97) == 1.0
    assert run.completed_rate == 97 / 2.0


def test_titles_are_short_and_say_what_runs() -> None:
    assert title("ray::ShardActor.until_gone") == "ray::ShardActor.until_gone"
    assert title("/usr/bin/python -m shardserve serve --port=1") == "python shardserve"
