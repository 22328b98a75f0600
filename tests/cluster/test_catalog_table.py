from __future__ import annotations

from dataclasses import replace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import Code, DataLoss
from shardserve.cluster.catalog_table import (
    CatalogTable,
    ModelEntry,
    Serving,
    VersionEntry,
    catalog_of,
    entries,
    following,
    table_changes,
)
from shardserve.cluster.lifecycle import Life, VersionStatus
from shardserve.cluster.model_views import ModelView
from shardserve.cluster.placement import Seat
from shardserve.cluster.router_steps import Drop, Has, Held, steps
from shardserve.cluster.table import RoutingTable, registered
from shardserve.cluster.versions import VersionId
from shardserve.router.catalog import Catalog, ModelSpec, State
from shardserve.router.experiments import Experiment
from shardserve.router.servable import Servable
from shardserve.shards.address import Address

EMPTY = RoutingTable(1, ((None,),))
AT = Address(host="10.0.0.1", port=7000, node="n", instance="i")
ONE = VersionId("m", 1)


def view(*statuses: VersionStatus, settled: bool = True) -> ModelView:
    return ModelView({one.version: one for one in statuses}, is_settled=settled)


@given(st.sampled_from(Life))
def test_every_phase_is_a_state_that_clients_know(phase: Life) -> None:
    models = entries({"m": view(VersionStatus(1, "", phase))}, {})
    assert models["m"].versions[1].state in State


def test_a_version_that_ended_in_error_says_why() -> None:
    ended = VersionStatus(1, "", Life.ENDED, error=DataLoss("variables.index: cut off"))
    entry = entries({"m": view(ended)}, {})["m"].versions[1]
    assert entry == VersionEntry(State.END, Code.DATA_LOSS, "variables.index: cut off")


def test_what_is_configured_no_more_has_settled() -> None:
    gone = ModelView({}, is_configured=False, is_settled=False)
    assert entries({"m": gone}, {})["m"].is_settled
    assert not entries({"m": view(settled=False)}, {})["m"].is_settled


def test_the_number_rises_exactly_when_something_has_changed() -> None:
    table = CatalogTable(7)
    models = {"m": ModelEntry(labels={"stable": 1})}
    after = following(table, models)
    assert after.number == 8
    assert following(after, dict(models)) is after
    assert following(after, models, opens=True).number == 9
    assert following(after, models, collect=1).number == 9
    assert following(after, models, problems=("no such path",)).number == 9


def test_requests_find_what_is_offered_whatever_its_state_and_labels_and_experiments() -> None:
    versions = {1: VersionEntry(State.AVAILABLE), 2: VersionEntry(State.LOADING)}
    models = {"m": ModelEntry(versions, {"stable": 1}, Experiment(canary=0.1))}
    second = cast(Servable, object())

    catalog = Catalog(catalog_of(models, {VersionId("m", 2): second}))

    assert catalog.resolve(ModelSpec("m", 2)) is second
    assert catalog.statuses(ModelSpec("m"))[0][1].state is State.LOADING
    assert catalog.models["m"].labels == {"stable": 1}
    assert catalog.models["m"].experiment == Experiment(canary=0.1)


def test_changes_name_the_version_and_the_actor() -> None:
    def table(number: int, state: State, routing: RoutingTable) -> CatalogTable:
        entry = VersionEntry(state, serving=Serving("d", "f", routing))
        return CatalogTable(number, {"m": ModelEntry({1: entry})})

    before = table(1, State.LOADING, EMPTY)
    after = table(2, State.AVAILABLE, registered(EMPTY, Seat(0, 0), AT))

    assert table_changes(before, after) == [
        "m version 1: AVAILABLE",
        f"m version 1: shard 0 replica 0 is at {AT}",
    ]
    assert table_changes(CatalogTable(0), before) == ["m version 1: LOADING"]
    assert table_changes(before, replace(before, problems=("no such path",))) == [
        "problem: no such path"
    ]
    assert before.servings() == {ONE: Serving("d", "f", EMPTY)}


def test_a_load_that_is_cancelled_is_on_its_way_no_more() -> None:
    """Or routers that have it, and were asked for it already, would keep it."""
    cancelled = VersionStatus(1, "", Life.LOADING, is_wanted=False, cancelled=True)
    table = CatalogTable(1, entries({"m": view(cancelled, settled=False)}, {}))
    assert table.models["m"].versions[1].state is State.UNLOADING
    assert steps(table, {ONE: Held("d", "f", Has.LOADED)}, {ONE}) == [Drop(ONE)]
