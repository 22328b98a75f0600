"""What it takes to serve a SavedModel from shards in a test, and to compare its answers."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shardserve.router.servable import RequestContext
from shardserve.router.session import StageThreads
from shardserve.router.sharded import ShardedServable, load_sharded
from shardserve.shards.bundle import open_bundle
from shardserve.shards.cut.cut import CutRule, cut_saved_model
from shardserve.shards.cut.planning import table_sources
from shardserve.shards.cut.saved_model import checkpoint_prefix
from shardserve.shards.layout import Layout
from shardserve.shards.local import LocalChannel
from shardserve.shards.messages import ShardChannel
from shardserve.shards.model import ModelPlan
from shardserve.shards.shard import Shard
from shardserve.shards.tables import TableSource
from tests.saved_models import THRESHOLD, Feeds

Answers = dict[str, np.ndarray]


@functools.cache
def tables_of(directory: Path, threshold: int = THRESHOLD) -> dict[str, TableSource]:
    """The tables of a model, and where their bytes lie. The model must not change any more."""
    cut = cut_saved_model(directory, CutRule(threshold=threshold))
    return table_sources(open_bundle(str(checkpoint_prefix(directory))), cut.tables)


def served(
    directory: Path,
    layout: Layout,
    sources: dict[str, TableSource],
    threads: StageThreads,
    channels: Sequence[ShardChannel] | None = None,
) -> ShardedServable:
    """Served with the shards in this process, unless there are `channels`."""
    plan = ModelPlan("model", 1, str(directory), ("serve",), layout, sources, "")
    if channels is None:
        shards = [Shard.load(sources, plan.slices_of_shard(n)) for n in range(layout.shards)]
        channels = [LocalChannel(shard) for shard in shards]
    return load_sharded(plan, channels, threads)


def ask(servable: ShardedServable, signature: str, feeds: Feeds) -> Answers:
    """All outputs of a signature."""
    outputs = tuple(servable.signatures[signature].outputs)
    context = RequestContext("test", math.inf)
    return asyncio.run(servable.run(signature, feeds, outputs, context))


def assert_same(got: Answers, expected: Answers) -> None:
    """Dtypes, shapes, and values but for the last digits."""
    _assert_alike(got, expected)
    for alias, value in expected.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(got[alias], value, rtol=1e-5, atol=1e-5, err_msg=alias)
        else:
            np.testing.assert_array_equal(got[alias], value, err_msg=alias)


def assert_same_sums(got: Answers, expected: Answers) -> None:
    """As `assert_same`, but for the last digits of the largest element: a sum near zero keeps the
    error of what cancelled."""
    _assert_alike(got, expected)
    for alias, value in expected.items():
        scale = np.abs(value).max(initial=1.0)
        np.testing.assert_allclose(got[alias], value, rtol=1e-5, atol=1e-5 * scale, err_msg=alias)


def _assert_alike(got: Answers, expected: Answers) -> None:
    assert got.keys() == expected.keys()
    for alias, value in expected.items():
        assert got[alias].dtype == value.dtype, alias
        assert got[alias].shape == value.shape, alias
