from __future__ import annotations

from dataclasses import replace

import pytest

from shardserve.cluster.placement import Bundle
from shardserve.cluster.stage_placement import (
    StageSeat,
    stage_bundle,
    stage_bundles,
    stage_seats,
    stage_shortage,
)
from shardserve.shards.stage_groups import StageGroup

GB = 1_000_000_000
TOWER = StageGroup("tower", ("tower",), 2, 1.0, 1.0, GB, "digest")
CLEAN = StageGroup("cpus", ("clean", "parse"), 1, 0.5, 0.0, 0, "digest")
LARGE = {"CPU": 8.0, "memory": 32.0 * GB, "GPU": 2.0}


def test_every_actor_of_every_group_has_a_seat_and_a_bundle_in_the_same_place() -> None:
    groups = (CLEAN, TOWER)

    assert stage_seats(groups) == (
        StageSeat("cpus", 0),
        StageSeat("tower", 0),
        StageSeat("tower", 1),
    )
    assert stage_bundles(groups) == (stage_bundle(CLEAN), *[stage_bundle(TOWER)] * 2)


def test_a_bundle_takes_what_the_regions_keep_and_tensorflow() -> None:
    bundle = stage_bundle(TOWER)

    assert bundle.memory == GB * 21 // 20 + (800 << 20)
    assert bundle.resources() == {"CPU": 1.0, "memory": bundle.memory, "GPU": 1.0}
    assert stage_bundle(CLEAN).resources().keys() == {"CPU", "memory"}


@pytest.mark.parametrize(
    ("nodes", "fits"),
    [
        ([LARGE], True),
        ([{**LARGE, "GPU": 1.0}], False),
        ([{**LARGE, "GPU": 1.0}] * 2, True),
        ([{**LARGE, "CPU": 2.4}], False),
        ([{**LARGE, "CPU": 2.7}], True),
        ([{**LARGE, "memory": 5.0 * GB}], False),
        ([], False),
    ],
)
def test_groups_have_to_fit_by_themselves_and_together(
    nodes: list[dict[str, float]], fits: bool
) -> None:
    others = [Bundle(0.1, GB)]
    assert (stage_shortage((CLEAN, TOWER), others, nodes) is None) == fits


def test_without_groups_nothing_is_short() -> None:
    assert stage_shortage((), [Bundle(9.0, GB)], []) is None


def test_a_shortage_names_the_region_what_it_needs_and_what_there_is() -> None:
    nodes = [{**LARGE, "GPU": 1.0}, {"CPU": 4.0, "memory": 9.0 * GB}]

    assert stage_shortage((CLEAN, TOWER), [], nodes) == (
        "2 stage actors of 1 CPU and 1 GPU and 1.89 GB each, for region tower, do not fit: the "
        "cluster has room for 1 (CPU by node: 8 CPU, 4 CPU; GPU by node: 1 GPU, 0 GPU; memory by "
        "node: 32.00 GB, 9.00 GB)"
    )


def test_a_shortage_names_sequences_and_loops() -> None:
    group = replace(TOWER, sequences=("a", "b"), loops=("while",))
    lacking = stage_shortage([group], [], [])
    assert lacking is not None
    assert "for region tower and sequences a, b and loop while, do not fit" in lacking


def test_a_shortage_of_all_together_says_of_what() -> None:
    nodes = [{**LARGE, "CPU": 2.5}]

    assert stage_shortage((CLEAN, TOWER), [Bundle(0.1, GB)], nodes) == (
        "the stage actors, for regions clean, parse; region tower, do not fit beside what runs "
        "with them: together they need 2.6 CPU (CPU by node: 2.5 CPU)"
    )
