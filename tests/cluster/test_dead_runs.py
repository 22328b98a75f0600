"""Which of Serve's applications are what a killed driver left behind."""

from __future__ import annotations

import pytest

from shardserve.cluster.dead_runs import dead, delete_each
from shardserve.cluster.run import is_name, new_name


def test_routers_are_dead_without_their_controller_and_what_is_not_ours_is_left_alone() -> None:
    living, gone = new_name(), new_name()
    applications = [living, "default", gone, "shardserve-dashboard", f"{gone}-of-somebody"]

    assert dead(applications, {living}.__contains__) == [gone]


def test_routers_that_cannot_be_ended_are_named_and_stop_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost, gone, deleted = new_name(), new_name(), []

    def delete(run: str) -> None:
        if run == lost:
            raise TimeoutError("not deleted after 60s")
        deleted.append(run)

    delete_each([lost, gone], delete)

    assert deleted == [gone]
    assert f"Serve does not end the routers of {lost}: not deleted after 60s" in caplog.messages


def test_no_two_runs_have_the_same_name() -> None:
    names = {new_name() for _ in range(50)}
    assert len(names) == 50
    assert all(map(is_name, names))
