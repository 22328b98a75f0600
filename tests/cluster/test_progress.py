from __future__ import annotations

from shardserve.batching.errors import DataLoss, Internal, Unavailable
from shardserve.cluster import progress
from shardserve.cluster.placement import Seat
from shardserve.cluster.progress import Failure, Phase, Progress, Start, failure_of, started
from shardserve.cluster.versions import VersionId
from shardserve.shards.layout import Layout, even_bounds, row_range
from shardserve.shards.model import ModelPlan
from shardserve.shards.tables import Table, TableSource

USERS = Table("users", "float32", 100, (8,))
PLAN = ModelPlan(
    "model",
    1,
    "/models/model/1",
    ("serve",),
    Layout(2, 2, {"users": row_range(USERS, even_bounds(100, range(2)))}),
    {"users": TableSource(USERS, ())},
    "digest",
)


def test_a_version_goes_through_its_phases() -> None:
    steps = [Progress()]
    steps.append(progress.placing(steps[-1], PLAN, "waiting for room"))
    steps.append(progress.loading(steps[-1]))
    steps.append(progress.loaded(steps[-1], Seat(1, 0), 800))
    steps.append(progress.ready(steps[-1]))

    assert [step.phase for step in steps] == [
        Phase.PLANNING,
        Phase.PLACING,
        Phase.LOADING,
        Phase.LOADING,
        Phase.READY,
    ]
    assert [step.note for step in steps] == ["", "waiting for room", "", "", ""]


def test_each_seat_has_its_bytes_to_load_and_all_of_them_when_ready() -> None:
    step = progress.placing(Progress(), PLAN, "")
    assert step.totals == {Seat(s, r): 1600 for s in range(2) for r in range(2)}

    step = progress.loaded(progress.loading(step), Seat(0, 1), 64)
    assert step.loaded == {Seat(0, 1): 64}
    assert progress.ready(step).loaded == step.totals


def test_a_start_is_over_when_models_and_routers_are_there_in_either_order() -> None:
    models_first = started(Start(0), is_settled=True)
    routers_first = started(Start(0), is_routed=True)
    assert not models_first.is_served
    assert not routers_first.is_served

    assert started(models_first, is_routed=True).is_served
    assert started(routers_first, is_settled=True).is_served


def test_what_changes_has_a_new_number_and_nothing_comes_after_a_failure() -> None:
    start = started(Start(3), versions={VersionId("m", 1): Progress()})
    assert start.number == 4
    assert started(start, versions={VersionId("m", 1): Progress()}) is start

    failed = started(start, failure=Failure(Unavailable.code, "no"))
    assert started(failed, is_settled=True) is failed


def test_the_first_failure_of_a_start_counts() -> None:
    first = failure_of(DataLoss("variables.data: cut off"))
    failed = started(Start(0), failure=first)

    assert started(failed, failure=Failure(Unavailable.code, "later")).failure == first


def test_a_failure_is_the_error_again_on_the_other_side() -> None:
    error = failure_of(DataLoss("variables.data: cut off")).error()

    assert isinstance(error, DataLoss)
    assert error.message == "variables.data: cut off"


def test_an_error_that_is_none_of_ours_is_internal_and_keeps_its_name() -> None:
    assert failure_of(OSError("disk")) == Failure(Internal.code, "OSError: disk")
