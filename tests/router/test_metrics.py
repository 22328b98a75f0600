"""Metrics have the original's names and form, and stay bounded; logs name their request."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr

import pytest
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as ForeignCounter
from prometheus_client.parser import text_string_to_metric_families

from shardserve.batching.errors import Code
from shardserve.batching.stage import StageCounts
from shardserve.router import logs
from shardserve.router.metrics import BUCKETS, MAX_SERIES, Counter, Histogram, Metrics


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
    assert len(BUCKETS) == 33
    assert BUCKETS[:3] == (10.0, 18.0, pytest.approx(32.4))


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
    [name] = _samples(metrics.page())
    assert name == ':tensorflow:serving:request_count_total{model_name=a"b\\c\nd,status=NOT_FOUND}'


def test_what_else_the_process_registers_is_on_the_page(registry: CollectorRegistry) -> None:
    ForeignCounter("elsewhere", "from elsewhere", registry=registry).inc()
    assert _samples(Metrics(registry).page())["elsewhere_total{}"] == 1


def test_clients_cannot_make_series_without_end() -> None:
    counter, histogram = Counter("c", ("model_name", "status")), Histogram("h", ("model_name",))
    for number in range(MAX_SERIES + 10):
        counter.add((f"m{number}", "OK"))
        histogram.observe((f"m{number}",), 0.0)
    assert 'c{model_name="",status="OK"} 10' in list(counter.lines())
    assert len(list(counter.lines())) == MAX_SERIES + 2
    assert 'h_count{model_name=""} 10' in list(histogram.lines())


# Logs


@pytest.mark.parametrize("given", ["abc", "a-b_c.d:e/f+g=h@i", "x" * 128])
def test_a_sane_id_is_kept(given: str) -> None:
    assert logs.request_id(given) == given


@pytest.mark.parametrize("given", [None, "", "a b", "a\nb", "é", "x" * 129])
def test_any_other_is_replaced_by_one_of_our_own(given: str | None) -> None:
    first, second = logs.request_id(given), logs.request_id(given)
    assert first != second
    assert logs.request_id(first) == first


@pytest.fixture
def restored_logging() -> object:
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("restored_logging")
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


@pytest.mark.usefixtures("restored_logging")
def test_a_level_leaves_out_what_is_below_it() -> None:
    written = io.StringIO()
    with redirect_stderr(written):
        logs.configure("warning")
        logs.request_failed(logs.logger(), "id", "m", "predict", Code.NOT_FOUND, "no", 0.5)
    assert written.getvalue() == ""


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="log level 'loud'"):
        logs.configure("loud")


def test_what_stages_that_batch_have_done_stands_by_their_names():
    counts = StageCounts(batches=2, tasks=5, queue_seconds=0.25, timeout_micros=100)
    page = Metrics(CollectorRegistry(), lambda: {"m/dense": counts}).page().decode()
    assert "# TYPE :shardserve:batching_tasks counter" in page
    assert ':shardserve:batching_tasks{stage="m/dense"} 5' in page
    assert ':shardserve:batching_queue_seconds{stage="m/dense"} 0.25' in page
    assert "# TYPE :shardserve:batching_timeout_micros gauge" in page
    assert "batching" not in Metrics(CollectorRegistry()).page().decode()
