"""The benchmark of stages sees on a page of metrics whether a server batches as it is measured."""

from __future__ import annotations

from benchmarks.batching_stages import BATCHES, batches_started
from shardserve.router.metric_page import page
from shardserve.router.metric_snapshot import Snapshot


def test_batches_of_all_versions_of_a_stage_are_counted_and_no_other_stages() -> None:
    stages = {("m", "1", "dense"): 2, ("m", "2", "dense"): 3, ("m", "1", "lookups/0"): 7}
    text = page(Snapshot({BATCHES: stages})).decode()
    assert batches_started(text, "dense") == 5
    assert batches_started(text, "requests") == 0
