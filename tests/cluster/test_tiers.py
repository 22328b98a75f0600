"""Shard actors whose slices stay in the checkpoint's files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shardserve.router.session import StageThreads
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.layout_file import dump_layout, to_file
from shardserve.shards.model import PlanOptions
from shardserve.shards.storage import Storage, Tier
from tests.cluster.runs import running
from tests.cluster.test_ray import CUT, predict, routed
from tests.sharded import served

pytestmark = pytest.mark.usefixtures("ray_cluster")


async def test_mapped_tables_are_served_and_shards_tell_what_their_caches_did(
    tiny_dlrm: Path, tmp_path: Path, threads: StageThreads
) -> None:
    plan = plan_model("model", 1, tiny_dlrm / "1", CUT)
    options = replace(CUT, storage=Storage(Tier.MAPPED))
    planned = plan_model("model", 1, tiny_dlrm / "1", options)
    layout = tmp_path / "layout.yaml"
    layout.write_text(dump_layout(to_file(replace(planned.layout, cache_per_shard=1 << 20))))

    in_memory = served(tiny_dlrm / "1", plan.layout, plan.sources, threads)
    expected = await predict(in_memory)
    await in_memory.close()
    async with running(tiny_dlrm / "1", PlanOptions(layout_file=layout)) as run:
        assert (await run.finished_start()).is_settled
        async with routed(run) as servable:
            for _ in range(2):
                np.testing.assert_array_equal(await predict(servable), expected)
        told = await run.controller.measures.remote()
        sums = {
            name: sum(m.value for m in told if m.name == name) for name in (m.name for m in told)
        }
        hits, misses = sums["row_cache_hit_count"], sums["row_cache_miss_count"]
        assert hits >= misses > 0
        assert hits + misses == sums["looked_up_row_count"]
        assert 0 < sums["resident_bytes"] == sums["row_cache_bytes"] <= 2 << 20
        assert sums["process_resident_bytes"] > 20 << 20
        shards = {dict(measure.labels)["shard"] for measure in told}
        assert shards == {str(shard) for shard in range(planned.layout.shards)}
