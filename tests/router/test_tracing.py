"""A request is one span, its stages are its children, and off there is nothing of all this."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from shardserve.batching.errors import Code, InvalidArgument
from shardserve.router import otel
from shardserve.router.batch_context import SharedContext
from shardserve.router.grpc_door import GrpcDoor
from shardserve.router.handlers import Handlers
from shardserve.router.http_door import HttpDoor
from shardserve.router.metrics import Metrics
from shardserve.router.otel import OpenTelemetryTraces
from shardserve.router.prediction import PredictionHandlers
from shardserve.router.rest import Rest
from shardserve.router.servable import RequestContext, Said
from shardserve.router.trace_collector import Collector, collector_of
from shardserve.router.tracing import (
    Ended,
    RemoteWork,
    Spent,
    StageSpan,
    remote_work,
    stage_spans,
    traced,
    traces_to,
)

PREDICT = "/v1/models/half_plus_two:predict"
BODY = b'{"instances": [1, 2, 5]}'
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"

# When stages ran


def test_stages_that_are_told_at_once_ran_one_after_the_other() -> None:
    spent = [Spent("decode", 10, 110), Spent("queue", 20, 200), Spent("dense", 50, 200)]
    assert stage_spans(spent, 100) == [
        StageSpan("decode", 100, 110),
        StageSpan("queue", 130, 150),
        StageSpan("dense", 150, 200),
    ]


def test_nothing_begins_before_the_request() -> None:
    spent = [Spent("wire", 60, 150), Spent("lookup", 70, 150)]
    assert stage_spans(spent, 100) == [StageSpan("wire", 100, 100), StageSpan("lookup", 100, 150)]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 100)), max_size=12),
    st.integers(0, 50),
)
def test_stages_are_in_order_and_none_takes_longer_than_it_did(
    stages: list[tuple[int, int]], started: int
) -> None:
    told = sorted(at + started for _, at in stages)
    spent = [Spent("s", took, at) for (took, _), at in zip(stages, told, strict=True)]
    spans = stage_spans(spent, started)
    assert all(
        started <= span.start <= span.end <= one.told and span.end - span.start <= one.duration
        for span, one in zip(spans, spent, strict=True)
    )
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))


def test_a_traced_context_is_the_same_request() -> None:
    before = RequestContext("id", 5.0, headers={"a": "b"})
    context = traced(before)
    assert (context.request_id, context.deadline, context.headers) == ("id", 5.0, {"a": "b"})
    context.spend("dense", 0.5)
    context.spend("dense", 0.25)
    assert context.seconds == {"dense": 0.75}
    assert [one.duration for one in context.spent] == [500_000_000, 250_000_000]


def test_what_others_did_is_put_in_the_middle_of_the_time_that_it_took() -> None:
    before = time.time_ns()
    fast, slow = remote_work([Said("a", 0.0, 0.5), Said("b", 0.5, 1.5)], 3.0)
    after = time.time_ns()

    # Half a second on the wire there, and half a second back.
    assert before - 2_500_000_000 <= slow.began == fast.began <= after - 2_500_000_000
    assert (slow.name, slow.queue_seconds, slow.work_seconds) == ("b", 0.5, 1.5)


def test_nobody_works_longer_than_he_was_waited_for() -> None:
    before = time.time_ns()
    (one,) = remote_work([Said("a", 5.0, 5.0)], 1.0)
    assert before - 1_000_000_000 <= one.began
    assert remote_work([], 1.0) == []


def test_only_who_traces_takes_note_of_what_others_did() -> None:
    said = iter([Said("a", 0.0, 0.5)])
    RequestContext("id", 5.0).told(said, 1.0)
    one, other = (traced(RequestContext(name, 5.0)) for name in "ab")
    SharedContext("both", 5.0, of=(one, other)).told(said, 1.0)
    assert [work.name for context in (one, other) for work in context.remote] == ["a", "a"]


# Spans of requests


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Iterator[OpenTelemetryTraces]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces = OpenTelemetryTraces(provider)
    yield traces
    traces.close()


@pytest.fixture
def rest(handlers: Handlers, traces: OpenTelemetryTraces) -> Rest:
    return Rest(handlers, Metrics(CollectorRegistry()), traces=traces)


def _requests(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [s for s in exporter.get_finished_spans() if s.kind is SpanKind.SERVER]


async def test_a_request_is_a_span_with_its_stages_within(
    rest: Rest, exporter: InMemorySpanExporter
) -> None:
    before = time.time_ns()
    response = await rest.handle("POST", PREDICT, {"x-request-id": "mine"}, BODY)
    assert response.status == 200
    [span] = _requests(exporter)
    assert span.name == "POST predict"
    assert span.attributes == {
        "http.request.method": "POST",
        "url.path": PREDICT,
        "http.response.status_code": 200,
        "shardserve.model": "half_plus_two",
        "shardserve.request_id": "mine",
    }
    stages = [s for s in exporter.get_finished_spans() if s is not span]
    assert [s.name for s in stages] == ["decode", "queue", "dense", "encode"]
    for stage in stages:
        assert stage.parent == span.context
        assert before <= span.start_time <= stage.start_time <= stage.end_time <= span.end_time


def test_what_others_did_are_spans_within_the_requests(
    traces: OpenTelemetryTraces, exporter: InMemorySpanExporter
) -> None:
    context = traced(RequestContext("id", 5.0))
    context.remote = [RemoteWork("shard 3", 1_000, 0.25, 0.5)]
    traces.ended(context, Ended("POST predict", {}, Code.OK))

    shard, request = exporter.get_finished_spans()
    assert (shard.name, shard.start_time, shard.end_time) == ("shard 3", 1_000, 750_001_000)
    assert shard.attributes == {"shardserve.queue_seconds": 0.25, "shardserve.work_seconds": 0.5}
    assert shard.parent == request.context


async def test_a_request_belongs_to_the_callers_trace(
    rest: Rest, exporter: InMemorySpanExporter
) -> None:
    await rest.handle("POST", PREDICT, {"traceparent": TRACEPARENT}, BODY)
    [span] = _requests(exporter)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT


@pytest.mark.parametrize("sent", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", "é" * 100])
async def test_a_traceparent_that_is_none_begins_a_trace(
    rest: Rest, exporter: InMemorySpanExporter, sent: str
) -> None:
    await rest.handle("POST", PREDICT, {"traceparent": sent}, BODY)
    [span] = _requests(exporter)
    assert span.parent is None


async def test_what_the_caller_does_not_sample_is_not_recorded(
    rest: Rest, exporter: InMemorySpanExporter
) -> None:
    await rest.handle("POST", PREDICT, {"traceparent": f"00-{TRACE}-{PARENT}-00"}, BODY)
    assert exporter.get_finished_spans() == ()


async def test_nothing_is_recorded_where_nothing_is_sampled(handlers: Handlers) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    rest = Rest(handlers, Metrics(CollectorRegistry()), traces=OpenTelemetryTraces(provider))
    assert (await rest.handle("POST", PREDICT, {}, BODY)).status == 200
    assert exporter.get_finished_spans() == ()


async def test_the_clients_fault_is_no_error_of_the_server(
    rest: Rest, exporter: InMemorySpanExporter
) -> None:
    assert (await rest.handle("POST", "/v1/models/no:predict", {}, BODY)).status == 404
    assert (await rest.handle("GET", "/nothing?secret=1", {}, b"")).status == 404
    absent, malformed = _requests(exporter)
    assert absent.attributes is not None
    assert malformed.attributes is not None
    assert absent.attributes["http.response.status_code"] == 404
    assert absent.status.status_code is StatusCode.UNSET
    assert (malformed.name, malformed.attributes["url.path"]) == ("GET", "/nothing")


async def test_a_failure_of_the_server_is_an_error(
    handlers: Handlers, traces: OpenTelemetryTraces, exporter: InMemorySpanExporter
) -> None:
    late = Rest(handlers, Metrics(CollectorRegistry()), timeout=-1.0, traces=traces)
    assert (await late.handle("POST", PREDICT, {}, BODY)).status == 504
    [span] = _requests(exporter)
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "Timed out waiting for notification"


async def test_both_doors_take_the_callers_trace(
    handlers: Handlers, traces: OpenTelemetryTraces, exporter: InMemorySpanExporter, rest: Rest
) -> None:
    prediction = PredictionHandlers(handlers, Metrics(CollectorRegistry()), traces=traces)
    doors: list[Any] = [GrpcDoor(prediction, "127.0.0.1"), HttpDoor(rest, "127.0.0.1")]
    for door in doors:
        await door.start()
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half_plus_two"
    request.inputs["x"].dtype = 1
    request.inputs["x"].float_val.append(1.0)
    request.inputs["x"].tensor_shape.dim.add(size=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{doors[0].port}") as channel:
        stub: Any = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        await stub.Predict(request, metadata=[("traceparent", TRACEPARENT)])
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Predict(predict_pb2.PredictRequest())
    await _post(doors[1].port)
    for door in doors:
        await door.stop(grace=0.0)
    over_grpc, refused, over_rest = _requests(exporter)
    assert over_grpc.name == "tensorflow.serving.PredictionService/Predict"
    assert over_grpc.attributes is not None
    assert over_grpc.attributes["shardserve.model"] == "half_plus_two"
    assert {f"{s.context.trace_id:032x}" for s in (over_grpc, over_rest)} == {TRACE}
    assert refused.attributes is not None
    assert refused.attributes["rpc.grpc.status_code"] == 3


async def _post(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTraceParent: {TRACEPARENT}\r\n"
    writer.write(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


# Where traces go


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.received: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (the service's name)
        self.received += request.resource_spans
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[_Collector, int]]:
    server = grpc.server(ThreadPoolExecutor(1))
    collector = _Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, port
    server.stop(None).wait()


async def test_spans_reach_a_collector_before_the_server_has_ended(
    handlers: Handlers, collector: tuple[_Collector, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    received, port = collector
    traces = traces_to(Collector(f"http://127.0.0.1:{port}"))
    assert traces is not None
    rest = Rest(handlers, Metrics(CollectorRegistry()), traces=traces)
    await rest.handle("POST", PREDICT, {}, BODY)
    traces.close()
    [sent] = received.received
    about = {one.key: one.value.string_value for one in sent.resource.attributes}
    assert about["service.name"] == "shardserve"
    assert about["deployment.environment"] == "test"
    names = [span.name for scope in sent.scope_spans for span in scope.spans]
    assert sorted(names) == ["POST predict", "decode", "dense", "encode", "queue"]


class _HttpCollector(BaseHTTPRequestHandler):
    received: ClassVar[list[tuple[str, Any]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        self.received.append((self.path, request))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None: ...


async def test_spans_reach_a_collector_over_http(handlers: Handlers) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _HttpCollector) as server:
        threading.Thread(target=server.serve_forever).start()
        traces = traces_to(collector_of(f"http://127.0.0.1:{server.server_port}/v1/traces", {}))
        assert traces is not None
        rest = Rest(handlers, Metrics(CollectorRegistry()), traces=traces)
        await rest.handle("POST", PREDICT, {}, BODY)
        await asyncio.to_thread(traces.close)
        server.shutdown()
    [(path, request)] = _HttpCollector.received
    assert path == "/v1/traces"
    names = [s.name for r in request.resource_spans for c in r.scope_spans for s in c.spans]
    assert sorted(names) == ["POST predict", "decode", "dense", "encode", "queue"]


async def test_a_collector_that_does_not_answer_is_not_waited_for(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otel, "FLUSH_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        traces = traces_to(Collector(f"http://127.0.0.1:{silent.getsockname()[1]}", over_http=True))
        assert traces is not None
        await Rest(handlers, Metrics(CollectorRegistry()), traces=traces).handle(
            "POST", PREDICT, {}, BODY
        )
        closing = asyncio.create_task(asyncio.to_thread(traces.close))
        await asyncio.wait_for(closing, 5)


PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
OWN = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("flag", "environ", "collector"),
    [
        (None, {}, None),
        ("http://a:1", {}, Collector("http://a:1")),
        ("https://a", {}, Collector("https://a")),
        (None, {BASE: "http://b:1"}, Collector("http://b:1")),
        ("http://a:1", {BASE: "http://b:1"}, Collector("http://a:1")),
        (None, {BASE: "http://b:1", OWN: "http://c:1"}, Collector("http://c:1")),
        ("http://a:1", {"OTEL_SDK_DISABLED": "true"}, None),
        ("http://a:1", {PROTOCOL: "grpc"}, Collector("http://a:1")),
        ("http://a:4318", {PROTOCOL: "grpc"}, Collector("http://a:4318")),
        (None, {PROTOCOL: "http/protobuf"}, None),
        (
            "http://a:1",
            {PROTOCOL: "http/protobuf"},
            Collector("http://a:1/v1/traces", over_http=True),
        ),
        ("http://a:4318", {}, Collector("http://a:4318/v1/traces", over_http=True)),
        ("http://a:4318/", {}, Collector("http://a:4318/v1/traces", over_http=True)),
        ("http://a/otlp", {}, Collector("http://a/otlp", over_http=True)),
        (None, {BASE: "http://b/otlp"}, Collector("http://b/otlp/v1/traces", over_http=True)),
        (None, {OWN: "http://b/otlp"}, Collector("http://b/otlp", over_http=True)),
        (
            "http://a:1",
            {PROTOCOL: "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            Collector("http://a:1/v1/traces", over_http=True),
        ),
    ],
)
def test_the_flag_and_opentelemetrys_variables_say_where_traces_go(
    flag: str | None, environ: dict[str, str], collector: Collector | None
) -> None:
    assert collector_of(flag, environ) == collector


@pytest.mark.parametrize(
    ("url", "environ", "text"),
    [
        (
            "http://a",
            {PROTOCOL: "http/json"},
            f"{PROTOCOL} is grpc or http/protobuf, not 'http/json'",
        ),
        ("localhost:4317", {}, "http:// or https:// and a host"),
        ("http://", {}, "http:// or https:// and a host"),
        ("http://a:port", {}, "http://a:port"),
    ],
)
def test_what_cannot_be_is_refused(url: str, environ: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        collector_of(url, environ)


def test_off_there_are_no_traces_and_nothing_is_imported() -> None:
    assert traces_to(None) is None
    program = (
        "import sys; import shardserve.router.rest, shardserve.router.prediction;"
        "assert not any(m.startswith('opentelemetry') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
