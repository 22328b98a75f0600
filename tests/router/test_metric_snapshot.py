"""What several routers have counted adds up, in any order, and stays bounded."""

from __future__ import annotations

import itertools

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from shardserve.batching.errors import Code, DataLoss
from shardserve.batching.tallies import Distribution
from shardserve.router.metric_families import (
    FAMILIES,
    LATENCY,
    OF_STAGES,
    REQUESTS,
    VERSION_STATE,
    Family,
    Fold,
    Kind,
)
from shardserve.router.metric_page import page
from shardserve.router.metric_series import MAX_SERIES
from shardserve.router.metric_snapshot import Snapshot, summed, unpacked
from shardserve.router.metrics import Metrics

_NAMES = st.sampled_from(["", "m", "n", 'a"\\\nb', "OK", "NOT_FOUND", "é"])
_WHOLE = st.integers(0, 2**53)


def _values(family: Family) -> st.SearchStrategy[object]:
    if family.kind is not Kind.HISTOGRAM:
        return _WHOLE
    size = len(family.bounds) + 1
    counts = st.lists(st.integers(0, 1000), min_size=size, max_size=size).map(tuple)
    # Whole numbers: sums of others agree to rounding only.
    return st.builds(Distribution, counts, st.integers(0, 1_000_000).map(float))


def _series(family: Family) -> st.SearchStrategy[dict[tuple[str, ...], object]]:
    labels = st.tuples(*(_NAMES for _ in family.labels))
    return st.dictionaries(labels, _values(family), max_size=4)


_SOME = [REQUESTS, LATENCY, VERSION_STATE, OF_STAGES["timeout_micros"], OF_STAGES["tasks"]]
_SNAPSHOTS = st.fixed_dictionaries({}, optional={f.name: _series(f) for f in _SOME}).map(Snapshot)


@settings(max_examples=50)
@given(st.lists(_SNAPSHOTS, min_size=3, max_size=3))
def test_the_order_and_the_groups_in_which_routers_are_added_make_no_difference(
    snapshots: list[Snapshot],
) -> None:
    whole = summed(snapshots)
    a, b, c = snapshots
    for order in itertools.permutations(snapshots):
        assert summed(order) == whole
    assert summed([summed([a, b]), c]) == whole
    assert summed([a, summed([b, c]), Snapshot()]) == whole


@settings(max_examples=50)
@given(_SNAPSHOTS)
def test_a_snapshot_comes_back_as_it_was_sent(snapshot: Snapshot) -> None:
    assert unpacked(snapshot.packed()) == snapshot


@settings(max_examples=50)
@given(st.lists(_SNAPSHOTS, max_size=4))
def test_the_page_of_a_sum_parses_and_has_the_sums(snapshots: list[Snapshot]) -> None:
    found = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page(summed(snapshots)).decode())
        for sample in family.samples
    }
    for name, family in FAMILIES.items():
        every = [snapshot.series.get(name, {}) for snapshot in snapshots]
        for labels in {labels for series in every for labels in series}:
            values = [series[labels] for series in every if labels in series]
            key = frozenset(zip(family.labels, labels, strict=True))
            assert found[_sample_name(family), key] == _expected(family, values)


def _sample_name(family: Family) -> str:
    suffix = {Kind.COUNTER: "_total", Kind.HISTOGRAM: "_count", Kind.GAUGE: ""}[family.kind]
    return f"{family.name.removesuffix('_total')}{suffix}"


def _expected(family: Family, values: list[object]) -> float:
    numbers = [v.count if isinstance(v, Distribution) else v for v in values]
    return max(numbers) if family.fold is Fold.MAX else sum(numbers)


def test_lengths_of_queues_add_up_and_chosen_timeouts_do_not() -> None:
    labels = ("m", "1", "dense")
    waiting, timeout = OF_STAGES["waiting_tasks"].name, OF_STAGES["timeout_micros"].name
    one = Snapshot({waiting: {labels: 3}, timeout: {labels: 100}})
    other = Snapshot({waiting: {labels: 4}, timeout: {labels: 90}})
    assert summed([one, other]).series == {waiting: {labels: 7}, timeout: {labels: 100}}


def test_what_has_gone_keeps_its_counts_and_nothing_else() -> None:
    waiting = OF_STAGES["waiting_tasks"].name
    gone = Snapshot({REQUESTS.name: {("m", "OK"): 3}, waiting: {("m", "1", "dense"): 3}})
    assert gone.past() == Snapshot({REQUESTS.name: {("m", "OK"): 3}})


def _made_up(router: int) -> Snapshot:
    invented = {(f"{router}-{n}", Code.NOT_FOUND.name): 1 for n in range(MAX_SERIES)}
    return Snapshot({REQUESTS.name: {("zebra", "OK"): 5, ("zebra", "UNAVAILABLE"): 2, **invented}})


def test_names_that_clients_make_up_do_not_push_out_the_models_of_any_router() -> None:
    routers = [_made_up(router) for router in range(3)]
    total = summed(routers)
    series = total.series[REQUESTS.name]
    assert len(series) == MAX_SERIES + 1
    assert series["zebra", "OK"] == 15
    assert series["zebra", "UNAVAILABLE"] == 6
    assert sum(series.values()) == 3 * (MAX_SERIES + 7)
    assert summed([summed(routers[:2]), routers[2]]) == total == summed(reversed(routers))
    assert len(total.packed()) < 1 << 20


def test_each_routers_process_stands_on_the_page_by_itself() -> None:
    pages = []
    for router, value in (("r1", 5), ("r2", 7)):
        registry = CollectorRegistry()
        Gauge("process_threads", "Threads.", ["kind"], registry=registry).labels("os").set(value)
        pages.append(Metrics(registry, router=router).taken())
    together = page(unpacked(summed(pages).packed())).decode()
    assert 'process_threads{kind="os",router="r1"} 5.0' in together
    assert 'process_threads{kind="os",router="r2"} 7.0' in together
    assert together.count("# TYPE process_threads gauge") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        msgpack.packb(1),
        msgpack.packb([2, {}, {}]),
        msgpack.packb([1, {REQUESTS.name: [["m", 1]]}, {}]),
        msgpack.packb([1, {REQUESTS.name: [["m", "OK", "many"]]}, {}]),
        msgpack.packb([1, {REQUESTS.name: [["m", 5, 1]]}, {}]),
        msgpack.packb([1, {LATENCY.name: [["m", "a", "b", [[1, 2], 3.0]]]}, {}]),
        msgpack.packb([1, {REQUESTS.name: 5}, {}]),
        msgpack.packb([1, {}, {"r": [["short"]]}]),
        msgpack.packb([1, [], {}]),
    ],
)
def test_what_is_no_snapshot_is_refused(content: bytes) -> None:
    with pytest.raises(DataLoss, match="not a snapshot of metrics"):
        unpacked(content)


def test_a_family_that_a_newer_router_has_is_left_out() -> None:
    raw = msgpack.packb([1, {":shardserve:new": [["m", 1]], REQUESTS.name: [["m", "OK", 1]]}, {}])
    assert unpacked(raw) == Snapshot({REQUESTS.name: {("m", "OK"): 1}})
