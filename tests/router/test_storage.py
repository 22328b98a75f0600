"""A model whose tables are kept in other ways than in memory as saved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest

from shardserve.router.servable import RequestContext
from shardserve.router.sharded import load_sharded
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.local import LocalChannel
from shardserve.shards.model import ModelPlan, PlanOptions
from shardserve.shards.shard import Shard
from shardserve.shards.storage import Precision, Storage, Tier
from tests.saved_models import THRESHOLD

FEEDS = {
    "ids": np.arange(90),
    "grid": np.arange(90 * 3, dtype=np.int32).reshape(90, 3) % 70,
    "chain": np.arange(90),
}
Rows = Callable[[Storage], tuple[ModelPlan, dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def answers(saved_model, threads) -> Rows:
    """A model's answers with its tables kept in some way, and the plan."""

    def ask(storage: Storage) -> tuple[ModelPlan, dict[str, np.ndarray]]:
        options = PlanOptions(shards=2, threshold=THRESHOLD, storage=storage)
        plan = plan_model("gathers", 1, saved_model("gathers"), options)
        channels = [
            LocalChannel(Shard.load(plan.sources, plan.slices_of_shard(shard), None, 1 << 12))
            for shard in range(2)
        ]
        servable = load_sharded(plan, channels, threads)
        outputs = ["rows", "deep", "grid", "chained", "scores"]
        context = RequestContext("test", time.monotonic() + 60)
        return plan, asyncio.run(servable.run("serving_default", FEEDS, outputs, context))

    return ask


def test_the_mapped_tier_answers_the_same_bits(answers):
    _, expected = answers(Storage())
    plan, got = answers(Storage(Tier.MAPPED))
    for alias, value in expected.items():
        np.testing.assert_array_equal(got[alias], value, err_msg=alias)
    assert [plan.bytes_of_shard(shard) for shard in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("precision", "error"),
    [
        (Precision.FLOAT16, 2.0**-11),
        (Precision.BFLOAT16, 2.0**-8),
        (Precision.INT8, 1 / 254),
        (Precision.INT4, 1 / 14),
    ],
)
def test_a_lower_precision_is_off_by_what_is_promised_and_keeps_the_dtype(
    answers, precision, error
):
    as_saved, expected = answers(Storage())
    plan, got = answers(Storage(precision=precision))
    for alias in ("rows", "grid", "deep"):
        assert got[alias].dtype == np.float32
        axes = (-1,) if alias != "deep" else (-2, -1)
        peaks = np.abs(expected[alias]).max(axis=axes, keepdims=True)
        assert (np.abs(got[alias] - expected[alias]) <= peaks * error * 1.001).all(), alias
    assert plan.bytes_of_shard(0) < as_saved.bytes_of_shard(0)
    assert plan.layout.tables["link"].storage.precision is Precision.AS_SAVED
