from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shardserve.cluster.placement import Seat
from shardserve.cluster.stage_placement import AnySeat, StageSeat
from shardserve.cluster.table import (
    RoutingTable,
    changes,
    empty_table,
    lost,
    registered,
)
from shardserve.shards.address import Address
from shardserve.shards.layout import Layout, even_bounds, row_range
from shardserve.shards.model import ModelPlan
from shardserve.shards.stage_groups import StageGroup
from shardserve.shards.tables import Table, TableSource

USERS = Table("users", "float32", 100, (8,))


def plan(shards: int, replicas: int, *, cut: bool = True) -> ModelPlan:
    tables = {"users": row_range(USERS, even_bounds(USERS.rows, range(shards)))} if cut else {}
    sources = {"users": TableSource(USERS, ())} if cut else {}
    layout = Layout(shards, replicas, tables)
    return ModelPlan("model", 3, "/models/model/3", ("serve",), layout, sources, "digest")


def with_stages(shards: int) -> ModelPlan:
    groups = tuple(StageGroup(name, (name,), 2, 1.0, 0.0, 0, name) for name in ("clean", "tower"))
    return replace(plan(shards, 1, cut=shards > 0), stage_groups=groups)


def at(instance: str) -> Address:
    return Address(host="10.0.0.1", port=7000, node="n", instance=instance)


def test_an_empty_table_has_a_place_for_every_seat_and_serves_nothing() -> None:
    table = empty_table(plan(2, 3), 100)

    assert table.number == 100
    assert table.addresses == ((None,) * 3,) * 2
    assert dict(table.by_seat()) == {Seat(s, r): None for s in range(2) for r in range(3)}


def test_a_model_with_nothing_to_cut_is_complete_from_the_start() -> None:
    table = empty_table(plan(4, 2, cut=False), 1)

    assert table.addresses == ()
    assert table.is_complete


def test_a_shard_is_found_at_the_replicas_there_are_and_a_table_is_complete_with_all() -> None:
    table = registered(empty_table(plan(2, 2), 1), Seat(0, 1), at("a"))
    assert (table.of_shard(0), table.of_shard(1)) == ((at("a"),), ())

    table = registered(table, Seat(1, 0), at("b"))
    assert not table.is_complete
    assert (table.of_shard(0), table.of_shard(1)) == ((at("a"),), (at("b"),))

    table = registered(registered(table, Seat(0, 0), at("c")), Seat(1, 1), at("d"))
    assert table.is_complete


def test_a_death_that_is_heard_of_after_the_successor_came_changes_nothing() -> None:
    table = registered(empty_table(plan(1, 1), 1), Seat(0, 0), at("old"))
    table = registered(table, Seat(0, 0), at("new"))

    assert lost(table, Seat(0, 0), "old") is table
    assert lost(table, Seat(0, 0), "new").addresses == ((None,),)


def test_registering_twice_changes_nothing() -> None:
    table = registered(empty_table(plan(1, 1), 1), Seat(0, 0), at("a"))

    assert registered(table, Seat(0, 0), at("a")) is table


def test_changes_are_told_by_seat() -> None:
    before = registered(empty_table(plan(2, 1), 1), Seat(0, 0), at("a"))
    after = registered(lost(before, Seat(0, 0), "a"), Seat(1, 0), at("b"))

    assert changes(before, after) == [
        "shard 0 replica 0 is gone",
        "shard 1 replica 0 is at 10.0.0.1:7000",
    ]
    assert changes(after, after) == []


def test_a_group_is_found_at_the_stage_actors_there_are_and_a_table_is_complete_with_all() -> None:
    table = empty_table(with_stages(0), 1)
    table = registered(table, StageSeat("clean", 0), at("a"))
    table = registered(table, StageSeat("tower", 1), at("b"))
    assert not table.is_complete
    assert (table.of_group("clean"), table.of_group("tower")) == ((at("a"),), (at("b"),))

    table = registered(table, StageSeat("clean", 1), at("c"))
    assert registered(table, StageSeat("tower", 0), at("d")).is_complete


SEATS: st.SearchStrategy[AnySeat] = st.one_of(
    st.builds(Seat, st.integers(0, 1), st.just(0)),
    st.builds(StageSeat, st.sampled_from(("clean", "tower")), st.integers(0, 1)),
)
EVENTS = st.lists(st.tuples(st.booleans(), SEATS, st.sampled_from("abc")), max_size=30)


@given(EVENTS)
def test_each_seat_holds_who_registered_last_unless_he_is_gone(
    events: list[tuple[bool, AnySeat, str]],
) -> None:
    table = empty_table(with_stages(2), 1)
    expected: dict[AnySeat, str] = {}
    for comes, seat, instance in events:
        before = table
        if comes:
            table, expected[seat] = registered(table, seat, at(instance)), instance
        else:
            table = lost(table, seat, instance)
            if expected.get(seat) == instance:
                del expected[seat]
        check_step(before, table)
    assert {
        seat: address.instance for seat, address in table.by_seat() if address is not None
    } == expected


def check_step(before: RoutingTable, after: RoutingTable) -> None:
    changed = dict(before.by_seat()) != dict(after.by_seat())
    assert after.number == before.number + changed
    assert len(changes(before, after)) == changed
