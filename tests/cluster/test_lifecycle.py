"""The lifecycle of versions: decisions only, under random programs of events."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shardserve.batching.errors import Code, Unavailable, error_of
from shardserve.cluster.lifecycle import (
    PASSING,
    CancelLoad,
    Life,
    Lifecycle,
    Load,
    Retries,
    Unload,
    WakeAt,
    availability_preserving,
    resource_preserving,
)

VERSIONS = st.integers(1, 4)
WANTED = st.dictionaries(VERSIONS, st.sampled_from(["old", "new"]), max_size=4)


class Programs(RuleBasedStateMachine):
    """Wants, ends of loads and unloads, and time, in any order; a machine that does as told."""

    policy = staticmethod(availability_preserving)
    parallel = 2

    def __init__(self) -> None:
        super().__init__()
        self.lifecycle = Lifecycle(self.policy, Retries(1, 10.0), self.parallel, kept=1)
        self.now = 0.0
        self.wanted: dict[int, str] = {}
        self.loading: set[int] = set()
        self.ready: set[int] = set()
        self.unloading: set[int] = set()
        self.wake = math.inf

    def do(self, actions) -> None:
        self.wake = math.inf
        for action in actions:
            match action:
                case Load(version):
                    assert version not in self.loading | self.ready | self.unloading
                    self.check_load()
                    self.loading.add(version)
                case Unload(version):
                    self.check_unload(version)
                    self.ready.remove(version)
                    self.unloading.add(version)
                case CancelLoad(version):
                    assert version in self.loading
                case WakeAt(time):
                    self.wake = time

    def check_unload(self, version: int) -> None:
        assert version not in self.wanted
        others = (self.ready - {version}) or not self.wanted
        assert others, "the last answer is given up while something else is wanted"

    def check_load(self) -> None:
        """Any time will do."""

    @rule(wanted=WANTED)
    def want(self, wanted) -> None:
        self.wanted = wanted
        self.do(self.lifecycle.want(wanted, self.now))

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def loaded(self, data) -> None:
        version = data.draw(st.sampled_from(sorted(self.loading)))
        self.loading.remove(version)
        self.ready.add(version)
        self.do(self.lifecycle.loaded(version, self.now))

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def failed(self, data) -> None:
        version = data.draw(st.sampled_from(sorted(self.loading)))
        self.loading.remove(version)
        self.do(self.lifecycle.failed(version, Unavailable("no"), self.now))

    @precondition(lambda self: self.unloading)
    @rule(data=st.data())
    def unloaded(self, data) -> None:
        version = data.draw(st.sampled_from(sorted(self.unloading)))
        self.unloading.remove(version)
        self.do(self.lifecycle.unloaded(version, self.now))

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def pass_time(self, seconds) -> None:
        self.now += seconds
        self.do(self.lifecycle.tick(self.now))

    @invariant()
    def it_knows_what_is_so(self) -> None:
        phases = {v: s.phase for v, s in self.lifecycle.versions.items()}
        assert {v for v, p in phases.items() if p is Life.LOADING} == self.loading
        assert {v for v, p in phases.items() if p is Life.READY} == self.ready
        assert {v for v, p in phases.items() if p is Life.UNLOADING} == self.unloading
        assert len(self.loading) <= self.parallel

    @invariant()
    def it_remembers_what_is_wanted_and_little_of_what_has_gone(self) -> None:
        versions = self.lifecycle.versions
        gone = [one for one in versions.values() if one.has_gone]
        assert len(gone) <= 1
        assert not any(one.files for one in gone)
        assert set(self.wanted) <= versions.keys()

    def teardown(self) -> None:
        """Where loads succeed from now on, it comes to have what is wanted, and nothing else."""
        for _ in range(100):
            for version in sorted(self.loading):
                self.loading.remove(version)
                self.ready.add(version)
                self.do(self.lifecycle.loaded(version, self.now))
            for version in sorted(self.unloading):
                self.unloading.remove(version)
                self.do(self.lifecycle.unloaded(version, self.now))
            self.now += 10.0
            self.do(self.lifecycle.tick(self.now))
        given_up = {
            v for v, s in self.lifecycle.versions.items() if s.is_wanted and s.phase is Life.ENDED
        }
        left = self.ready - set(self.wanted)
        assert self.ready - left == set(self.wanted) - given_up
        # A version that nobody wants stays while what is wanted cannot be had.
        assert not left or (len(left) == 1 and given_up == set(self.wanted))
        assert self.lifecycle.is_settled


class ResourcePreservingPrograms(Programs):
    policy = staticmethod(resource_preserving)

    def check_unload(self, version: int) -> None:
        assert version not in self.wanted

    def check_load(self) -> None:
        """Nothing loads while what nobody wants still holds resources."""
        held = self.loading | self.ready | self.unloading
        assert held <= set(self.wanted)


TestAvailabilityPreserving = Programs.TestCase
TestResourcePreserving = ResourcePreservingPrograms.TestCase
for case in (TestAvailabilityPreserving, TestResourcePreserving):
    case.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def actions_of(lifecycle: Lifecycle, *versions: int) -> list[object]:
    return lifecycle.want(dict.fromkeys(versions, ""), 0.0)


def test_a_successor_is_ready_before_its_predecessor_goes() -> None:
    lifecycle = Lifecycle()
    assert actions_of(lifecycle, 1) == [Load(1)]
    lifecycle.loaded(1, 0.0)
    assert actions_of(lifecycle, 2) == [Load(2)]
    assert lifecycle.loaded(2, 1.0) == [Unload(1)]


def test_with_resources_preserved_the_predecessor_goes_first() -> None:
    lifecycle = Lifecycle(resource_preserving)
    actions_of(lifecycle, 1)
    lifecycle.loaded(1, 0.0)
    assert actions_of(lifecycle, 2) == [Unload(1)]
    assert lifecycle.unloaded(1, 1.0) == [Load(2)]


def test_the_newest_loads_first() -> None:
    assert actions_of(Lifecycle(parallel=2), 1, 3, 2) == [Load(3), Load(2)]


def test_a_failed_load_is_tried_again_after_the_interval_and_then_given_up() -> None:
    lifecycle = Lifecycle(retries=Retries(most=1, interval=60.0))
    actions_of(lifecycle, 1)
    assert lifecycle.failed(1, Unavailable("disk"), 5.0) == [WakeAt(65.0)]
    assert lifecycle.tick(64.0) == [WakeAt(65.0)]
    assert lifecycle.tick(65.0) == [Load(1)]
    assert lifecycle.failed(1, Unavailable("disk"), 70.0) == []
    status = lifecycle.versions[1]
    assert status.phase is Life.ENDED
    assert status.error is not None
    assert status.error.message == "disk"


def test_a_version_given_up_is_tried_anew_when_its_files_change() -> None:
    lifecycle = Lifecycle(retries=Retries(most=0))
    lifecycle.want({1: "a"}, 0.0)
    lifecycle.failed(1, Unavailable("truncated"), 0.0)
    assert lifecycle.want({1: "a"}, 1.0) == []
    assert lifecycle.want({1: "b"}, 2.0) == [Load(1)]


def test_a_load_that_nobody_wants_any_more_is_cancelled() -> None:
    lifecycle = Lifecycle()
    actions_of(lifecycle, 1)
    assert actions_of(lifecycle) == [CancelLoad(1)]
    lifecycle.failed(1, Unavailable("whatever"), 1.0)
    status = lifecycle.versions[1]
    assert status.error is not None
    assert status.error.code is Code.CANCELLED


def test_a_version_wanted_again_waits_until_it_is_gone() -> None:
    lifecycle = Lifecycle()
    actions_of(lifecycle, 1)
    lifecycle.loaded(1, 0.0)
    assert actions_of(lifecycle) == [Unload(1)]
    assert actions_of(lifecycle, 1) == []
    assert lifecycle.unloaded(1, 2.0) == [Load(1)]


@pytest.mark.parametrize("policy", [availability_preserving, resource_preserving])
@given(WANTED)
@settings(max_examples=20, deadline=None)
def test_all_go_when_none_is_wanted(policy, wanted) -> None:
    lifecycle = Lifecycle(policy, parallel=8)
    for action in lifecycle.want(wanted, 0.0):
        assert isinstance(action, Load)
        lifecycle.loaded(action.version, 0.0)
    gone = {a.version for a in lifecycle.want({}, 1.0) if isinstance(a, Unload)}
    assert gone == set(wanted)


@pytest.mark.parametrize("code", Code)
def test_only_what_may_pass_by_itself_is_tried_again(code: Code) -> None:
    lifecycle = Lifecycle(retries=Retries(most=1, interval=10.0))
    lifecycle.want({1: "files"}, now=0.0)

    actions = lifecycle.failed(1, error_of(code, "no"), now=1.0)

    passing = code in PASSING or code is Code.OK  # What has no code is UNKNOWN.
    assert actions == ([WakeAt(11.0)] if passing else [])
    assert lifecycle.versions[1].phase is (Life.RETRYING if passing else Life.ENDED)


def test_what_failed_for_good_is_tried_again_when_its_files_change() -> None:
    lifecycle = Lifecycle()
    lifecycle.want({1: "broken"}, now=0.0)
    lifecycle.failed(1, error_of(Code.DATA_LOSS, "cut off"), now=1.0)

    assert lifecycle.want({1: "broken"}, now=2.0) == []
    assert lifecycle.want({1: "mended"}, now=3.0) == [Load(1)]


def test_the_newest_of_the_versions_that_have_gone_are_remembered() -> None:
    lifecycle = Lifecycle(kept=2)
    for version in range(1, 6):
        actions_of(lifecycle, version)
        for action in lifecycle.loaded(version, 0.0):
            assert isinstance(action, Unload)
            lifecycle.unloaded(action.version, 0.0)
    phases = {number: one.phase for number, one in lifecycle.versions.items()}
    assert phases == {3: Life.ENDED, 4: Life.ENDED, 5: Life.READY}


def test_a_version_that_failed_is_remembered_with_its_files_while_it_is_there() -> None:
    lifecycle = Lifecycle(retries=Retries(0), kept=0)
    lifecycle.want({1: "broken"}, 0.0)
    lifecycle.failed(1, Unavailable("no"), 0.0)
    assert lifecycle.want({1: "broken"}, 1.0) == []
    assert lifecycle.want({}, 2.0) == []
    assert not lifecycle.versions
