"""Metrics have the original's names and form, and stay bounded; logs name their request."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as ForeignCounter
from prometheus_client.parser import text_string_to_metric_families

from shardserve.batching.errors import Code
from shardserve.router import logs
from shardserve.router.metric_families import LATENCY, LATENCY_BOUNDS, REQUESTS
from shardserve.router.metric_series import MAX_FAULTS, MAX_SERIES, Counter, Histogram
from shardserve.router.metrics import Metrics
from shardserve.shards.measures import Measure, MeasureKind


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def _samples(page: bytes) -> dict[str, float]:
    """Every sample by its full name, as this parser reads the page: it adds _total to counters."""
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_buckets_are_those_of_the_original() -> None:
    assert len(LATENCY_BOUNDS) == 33
    assert LATENCY_BOUNDS[:3] == (10.0, 18.0, pytest.approx(32.4))


def test_requests_are_counted_by_status_and_timed_if_they_succeed(
    registry: CollectorRegistry,
) -> None:
    metrics = Metrics(registry)
    metrics.request("m", "Predict", "GRPC", Code.OK, 15e-6)
    metrics.request("m", "predict", "REST", Code.OK, 1.0)
    metrics.request("m", "predict", "REST", Code.NOT_FOUND, 1.0)
    samples = _samples(metrics.page())
    requests = ":tensorflow:serving:request_count_total"
    assert samples[f"{requests}{{model_name=m,status=OK}}"] == 2
    assert samples[f"{requests}{{model_name=m,status=NOT_FOUND}}"] == 1
    latency = ":tensorflow:serving:request_latency"
    grpc = "API=Predict,entrypoint=GRPC"
    assert samples[f"{latency}_bucket{{{grpc},le=10,model_name=m}}"] == 0
    assert samples[f"{latency}_bucket{{{grpc},le=18,model_name=m}}"] == 1
    assert samples[f"{latency}_bucket{{{grpc},le=+Inf,model_name=m}}"] == 1
    assert samples[f"{latency}_sum{{{grpc},model_name=m}}"] == 15
    assert samples[f"{latency}_count{{API=predict,entrypoint=REST,model_name=m}}"] == 1


def test_names_and_types_are_written_exactly_as_the_original_writes_them(
    registry: CollectorRegistry,
) -> None:
    metrics = Metrics(registry)
    metrics.request("m", "predict", "REST", Code.OK, 1e-5)
    lines = metrics.page().decode().splitlines()
    assert "# TYPE :tensorflow:serving:request_count counter" in lines
    assert "# TYPE :tensorflow:serving:request_latency histogram" in lines
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 1' in lines
    assert (
        ':tensorflow:serving:request_latency_bucket{model_name="m",API="predict",'
        'entrypoint="REST",le="10"} 1'
    ) in lines


def test_stages_are_timed_and_the_runtime_is_what_lies_between_the_codecs(
    registry: CollectorRegistry,
) -> None:
    metrics = Metrics(registry)
    metrics.stages("m", "predict", {"decode": 1.0, "queue": 2e-6, "dense": 3e-6, "encode": 1.0})
    samples = _samples(metrics.page())
    assert samples[":shardserve:stage_latency_sum{model_name=m,stage=dense}"] == 3
    assert samples[":shardserve:stage_latency_count{model_name=m,stage=decode}"] == 1
    runtime = ":tensorflow:serving:runtime_latency_sum{API=predict,model_name=m,runtime=TF1}"
    assert samples[runtime] == 5


def test_names_that_need_it_are_escaped(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.request('a"b\\c\nd', "predict", "REST", Code.NOT_FOUND, 0.0)
    name = next(iter(_samples(metrics.page())))
    assert name == ':tensorflow:serving:request_count_total{model_name=a"b\\c\nd,status=NOT_FOUND}'


def test_what_else_the_process_registers_is_on_the_page(registry: CollectorRegistry) -> None:
    ForeignCounter("elsewhere", "from elsewhere", registry=registry).inc()
    assert _samples(Metrics(registry).page())["elsewhere_total{}"] == 1


def test_clients_cannot_make_series_without_end() -> None:
    counter, histogram = Counter(REQUESTS), Histogram(LATENCY)
    for number in range(MAX_SERIES + 10):
        counter.add((f"m{number}", "OK"))
        histogram.observe((f"m{number}", "predict", "REST"), 0.0)
    assert counter.series()["", "OK"] == 10
    assert len(counter.series()) == MAX_SERIES + 1
    assert histogram.series()["", "predict", "REST"].count == 10


def test_names_that_clients_invent_leave_room_for_models_that_are_served() -> None:
    counter = Counter(REQUESTS)
    for number in range(MAX_SERIES):
        counter.add((f"no{number}", "NOT_FOUND"))
        counter.add((f"no{number}", "INVALID_ARGUMENT"))
    counter.add(("loaded later", "OK"))
    series = counter.series()
    assert series["loaded later", "OK"] == 1
    assert len(series) == MAX_FAULTS + 3
    assert counter.total() == 2 * MAX_SERIES + 1


def test_failures_are_timed_apart(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.request("m", "predict", "REST", Code.UNAVAILABLE, 2.0)
    metrics.request("m", "predict", "REST", Code.INVALID_ARGUMENT, 2.0)
    samples = _samples(metrics.page())
    failed = ":shardserve:failed_request_latency_sum{API=predict,entrypoint=REST,model_name=m}"
    assert samples[failed] == 2e6
    assert not any(":serving:request_latency" in name for name in samples)


def test_sums_keep_all_their_digits(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.request("m", "predict", "REST", Code.OK, 1234.567891)
    samples = _samples(metrics.page())
    latency = ":tensorflow:serving:request_latency_sum{API=predict,entrypoint=REST,model_name=m}"
    assert samples[latency] == pytest.approx(1234567891, rel=1e-12)


def test_warm_up_logging_and_experiments_are_counted(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.warm_up("/models/m/1", Code.OK, 1.0, 7)
    metrics.request_logged("m", Code.OK)
    metrics.experiment("m", 2, "canary", Code.OK, 0.5)
    metrics.experiment("m", 2, "canary", Code.INTERNAL, 0.5)
    samples = _samples(metrics.page())
    at = "model_path=/models/m/1,status=OK"
    assert samples[f":tensorflow:serving:model_warmup_records_read_total{{{at}}}"] == 7
    assert samples[f":tensorflow:serving:model_warmup_latency_sum{{{at}}}"] == 1e6
    logged = ":tensorflow:serving:request_log_count_total{model_name=m,status_code=OK}"
    assert samples[logged] == 1
    canary = "model_name=m,role=canary"
    requests = ":shardserve:experiment_requests_total"
    assert samples[f"{requests}{{{canary},status=INTERNAL,version=2}}"] == 1
    assert samples[f":shardserve:experiment_latency_count{{{canary},version=2}}"] == 1


def test_a_counter_is_found_by_the_originals_name(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.request("a", "predict", "REST", Code.OK, 1.0)
    metrics.request("b", "predict", "REST", Code.NOT_FOUND, 1.0)
    assert metrics.total("/tensorflow/serving/request_count") == 2
    assert metrics.total("/tensorflow/serving/request_log_count") == 0
    assert metrics.total("/tensorflow/serving/request_latency") is None
    assert metrics.total("/no/such") is None


# Logs


@pytest.mark.parametrize("given", ["abc", "a-b_c.d:e/f+g=h@i", "x" * 128])
def test_a_sane_id_is_kept(given: str) -> None:
    assert logs.request_id(given) == given


@pytest.mark.parametrize("given", [None, "", "a b", "a\nb", "é", "x" * 129])
def test_any_other_is_replaced_by_one_of_our_own(given: str | None) -> None:
    first, second = logs.request_id(given), logs.request_id(given)
    assert first != second
    assert logs.request_id(first) == first


@pytest.mark.usefixtures("unconfigured")
def test_a_failure_is_one_line_of_json_at_the_level_of_whose_fault_it_is() -> None:
    written = io.StringIO()
    with redirect_stderr(written):
        logs.configure("info")
        log = logs.logger(entrypoint="REST")
        logs.request_failed(log, "id-1", "m", "predict", Code.NOT_FOUND, "no\nsuch" * 999, 0.5)
        logs.request_failed(log, "id-2", "m", "predict", Code.INTERNAL, "oh", 0.5)
    theirs, ours = [json.loads(line) for line in written.getvalue().splitlines()]
    assert (theirs["level"], ours["level"]) == ("info", "warning")
    assert theirs["request_id"] == "id-1"
    assert theirs["code"] == "NOT_FOUND"
    assert len(theirs["message"]) == logs.MAX_MESSAGE


@pytest.mark.usefixtures("unconfigured")
def test_a_level_leaves_out_what_is_below_it() -> None:
    written = io.StringIO()
    with redirect_stderr(written):
        logs.configure("warning")
        logs.request_failed(logs.logger(), "id", "m", "predict", Code.NOT_FOUND, "no", 0.5)
    assert written.getvalue() == ""


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="log level 'loud'"):
        logs.configure("loud")


def test_what_shards_tell_of_themselves_stands_there_under_its_name(
    registry: CollectorRegistry,
) -> None:
    hits = Measure("row_cache_hit_count", MeasureKind.COUNTER, 7, (("table", 'a"b'),))
    told = [
        hits.labelled(shard=0),
        Measure("process_resident_bytes", MeasureKind.GAUGE, 9),
        hits.labelled(shard=1),
    ]
    lines = Metrics(registry).page(told).decode().splitlines()
    first = lines.index("# TYPE :shardserve:row_cache_hit_count counter")
    assert lines[first + 1 : first + 5] == [
        r':shardserve:row_cache_hit_count{shard="0",table="a\"b"} 7',
        r':shardserve:row_cache_hit_count{shard="1",table="a\"b"} 7',
        "# TYPE :shardserve:process_resident_bytes gauge",
        ":shardserve:process_resident_bytes{} 9",
    ]
