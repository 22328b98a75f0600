"""The routers that there are, against a model of them that remembers everything."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shardserve.cluster.leases import (
    Leases,
    RouterReport,
    all_follow,
    all_have_dropped,
    all_have_loaded,
    refusal_of,
)
from shardserve.cluster.progress import Failure
from shardserve.cluster.versions import VersionId

ONE = VersionId("m", 1)
ROUTERS = st.sampled_from(["a", "b", "c"])


class LeasesProgram(RuleBasedStateMachine):
    """Whoever was heard within the lease is there, with the latest that it has said."""

    def __init__(self) -> None:
        super().__init__()
        self.leases = Leases(seconds=10.0)
        self.now = 0.0
        self.heard: dict[str, tuple[float, RouterReport]] = {}

    @rule(router=ROUTERS, number=st.integers(0, 5))
    def report(self, router: str, number: int) -> None:
        report = RouterReport(number, applied=number)
        self.leases.heard(router, report, self.now)
        known = self.heard.get(router)
        latest = report if known is None or number >= known[1].number else known[1]
        self.heard[router] = self.now, latest

    @rule(seconds=st.floats(0.0, 20.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        gone = {one for one, (when, _) in self.heard.items() if when + 10.0 <= self.now}
        assert self.leases.expire(self.now) == gone
        for router in gone:
            del self.heard[router]

    @invariant()
    def those_are_there_that_were_heard(self) -> None:
        assert self.leases.reports == {one: report for one, (_, report) in self.heard.items()}


TestLeases = LeasesProgram.TestCase


def test_all_have_loaded_only_the_same_deployment_and_as_many_as_there_are_to_be() -> None:
    new, old = RouterReport(loaded={ONE: "new"}), RouterReport(loaded={ONE: "old"})

    assert all_have_loaded([new, new], ONE, "new", at_least=2)
    assert not all_have_loaded([new], ONE, "new", at_least=2)
    assert not all_have_loaded([new, old], ONE, "new")
    assert not all_have_loaded([new, RouterReport()], ONE, "new")
    assert all_have_loaded([], ONE, "new")


def test_a_refusal_is_of_its_deployment_only() -> None:
    why = Failure(13, "no")
    refusing = RouterReport(refused={"old": why})

    assert refusal_of([RouterReport(), refusing], "old") == why
    assert refusal_of([refusing], "new") is None


def test_what_is_held_by_one_router_or_was_dropped_by_an_earlier_table_is_not_gone() -> None:
    gone = RouterReport(applied=7)

    assert all_have_dropped([gone, gone], ONE, 7)
    assert not all_have_dropped([gone, RouterReport(applied=7, held=frozenset([ONE]))], ONE, 7)
    assert not all_have_dropped([gone], ONE, 8)
    assert all_follow([gone], 7)
    assert not all_follow([gone, RouterReport(applied=6)], 7)
