from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.cluster.placement import (
    Bundle,
    Seat,
    assign,
    bundle_for,
    seats,
    shortage,
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
