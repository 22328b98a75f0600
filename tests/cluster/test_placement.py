from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.cluster.placement import (
    Bundle,
    Seat,
    assign,
    assign_alike,
    bundle_for,
    bundles_for,
    left_over,
    seats,
    shortage,
    shortage_of,
)
from shardserve.shards.layout import Layout, even_bounds, row_range
from shardserve.shards.tables import Table

GB = 1_000_000_000
USERS = Table("users", "float32", 100, (8,))


def layout(shards: int, replicas: int) -> Layout:
    tables = {"users": row_range(USERS, even_bounds(USERS.rows, range(shards)))}
    return Layout(shards, replicas, tables)


def test_every_replica_of_every_shard_has_one_seat() -> None:
    assert seats(layout(2, 2)) == (Seat(0, 0), Seat(1, 0), Seat(0, 1), Seat(1, 1))


def test_a_model_with_nothing_cut_needs_no_seats() -> None:
    assert seats(Layout(4, 2, {})) == ()


def test_a_bundle_takes_the_largest_shard_and_its_process() -> None:
    assert bundle_for([GB, 20 * GB]).memory == 21 * GB + (150 << 20)


def test_four_shards_twice_fit_two_cores() -> None:
    needed = sum(bundle_for([GB]).cpus for _ in seats(layout(4, 2)))
    assert needed < 0.5


@pytest.mark.parametrize(
    ("nodes", "count", "fits"),
    [
        ([{"CPU": 2.0, "memory": 8.0 * GB}], 4, True),
        ([{"CPU": 2.0, "memory": 7.9 * GB}], 4, False),
        ([{"CPU": 2.0, "memory": 3.9 * GB}, {"CPU": 2.0, "memory": 6.0 * GB}], 4, True),
        ([{"CPU": 2.0, "memory": 3.9 * GB}, {"CPU": 2.0, "memory": 5.9 * GB}], 4, False),
        ([{"CPU": 0.0, "memory": 9.0 * GB}], 1, False),
        ([{"memory": 9.0 * GB}], 1, False),
        ([], 1, False),
    ],
)
def test_bundles_fit_only_whole_into_nodes(
    nodes: list[dict[str, float]], count: int, fits: bool
) -> None:
    assert (shortage(Bundle(0.5, 2 * GB), count, nodes) is None) == fits


def test_a_shortage_says_what_is_needed_and_what_there_is() -> None:
    text = shortage(Bundle(0.01, 2 * GB), 4, [{"CPU": 2.0, "memory": 5.0 * GB}])

    assert text == (
        "4 shard actors of 2.00 GB each do not fit: the cluster has room for 2"
        " (GB of memory by node: 5.00)"
    )


@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_each_seat_gets_a_bundle_of_its_own_and_replicas_part_where_they_can(
    shards: int, replicas: int, data: st.DataObject
) -> None:
    places = seats(layout(shards, replicas))
    nodes = data.draw(
        st.lists(st.sampled_from("abcde"), min_size=len(places), max_size=len(places))
    )

    bundles = assign(places, nodes)

    assert sorted(bundles.values()) == list(range(len(places)))
    if max(Counter(nodes).values()) <= shards:
        nodes_of = defaultdict(list)
        for seat, bundle in bundles.items():
            nodes_of[seat.shard].append(nodes[bundle])
        assert all(len(set(used)) == len(used) for used in nodes_of.values())


def test_two_nodes_hold_one_replica_of_each_shard() -> None:
    nodes = ["a", "b", "a", "b", "a", "b", "a", "b"]

    bundles = assign(seats(layout(4, 2)), nodes)

    assert {seat.replica for seat, bundle in bundles.items() if nodes[bundle] == "a"} == {0}


def test_only_shards_with_something_on_a_gpu_reserve_one() -> None:
    bundles = bundles_for(seats(layout(2, 2)), [GB, 20 * GB], [0, 1])

    assert [bundle.gpus for bundle in bundles] == [0, 1, 0, 1]
    assert {bundle.memory for bundle in bundles} == {bundle_for([20 * GB]).memory}
    assert bundles[0].resources().keys() == {"CPU", "memory"}
    assert bundles[1].resources()["GPU"] == 1


@pytest.mark.parametrize(
    ("nodes", "fits"),
    [
        ([{"CPU": 2.0, "memory": 8.0 * GB, "GPU": 2.0}], True),
        ([{"CPU": 2.0, "memory": 8.0 * GB, "GPU": 1.0}], False),
        ([{"CPU": 2.0, "memory": 8.0 * GB}], False),
        ([{"CPU": 2.0, "memory": 4.0 * GB, "GPU": 2.0}, {"CPU": 2.0, "memory": 4.0 * GB}], True),
        ([{"CPU": 2.0, "memory": 2.0 * GB, "GPU": 8.0}, {"CPU": 2.0, "memory": 9.0 * GB}], False),
        ([{"CPU": 2.0, "memory": 6.0 * GB, "GPU": 8.0}], False),
    ],
)
def test_gpus_and_memory_have_to_be_on_one_node(nodes: list[dict[str, float]], fits: bool) -> None:
    plain, gpu = Bundle(0.5, 2 * GB), Bundle(0.5, 2 * GB, 1)
    assert (shortage_of([plain, gpu, plain, gpu], nodes) is None) == fits


def test_a_shortage_of_gpus_says_where_gpus_are() -> None:
    nodes = [{"CPU": 2.0, "memory": 9.0 * GB, "GPU": 1.0}, {"CPU": 2.0, "memory": 9.0 * GB}]

    assert shortage_of([Bundle(0.01, 2 * GB), *[Bundle(0.01, 2 * GB, 1)] * 2], nodes) == (
        "2 shard actors of 2.00 GB and 1 GPU each do not fit: the cluster has room for 1"
        " (GB of memory by node: 9.00, 9.00; GPUs by node: 1, 0)"
    )


@given(st.integers(1, 5), st.integers(1, 3), st.data())
def test_each_seat_gets_a_bundle_like_the_one_it_needs(
    shards: int, replicas: int, data: st.DataObject
) -> None:
    places = seats(layout(shards, replicas))
    gpus = data.draw(st.lists(st.integers(0, 1), min_size=shards, max_size=shards))
    bundles = bundles_for(places, [GB] * shards, gpus)
    nodes = data.draw(st.lists(st.sampled_from("abc"), min_size=len(places), max_size=len(places)))

    chosen = assign_alike(places, bundles, nodes)

    assert sorted(chosen.values()) == list(range(len(places)))
    assert all(bundles[chosen[seat]].gpus == gpus[seat.shard] for seat in places)


def test_what_others_have_taken_is_not_there_for_the_next() -> None:
    nodes = {"a": {"CPU": 4.0, "memory": 100.0, "GPU": 1.0}, "b": {"CPU": 4.0, "memory": 100.0}}
    taken = [("a", Bundle(1.0, 70, gpus=1)), ("b", Bundle(0.5, 20)), ("gone", Bundle(1.0, 10))]

    left = left_over(nodes, taken)

    assert left == [{"CPU": 3.0, "memory": 30.0, "GPU": 0.0}, {"CPU": 3.5, "memory": 80.0}]
    assert shortage(Bundle(0.1, 50), 1, left) is None
    assert shortage(Bundle(0.1, 50), 2, left) is not None
