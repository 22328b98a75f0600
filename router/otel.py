"""Requests as OpenTelemetry's spans, sent to an OTLP collector over gRPC or HTTP."""

from __future__ import annotations

import threading
import time

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

from shardserve.batching.errors import Code
from shardserve.router.servable import Headers
from shardserve.router.trace_collector import Collector
from shardserve.router.tracing import Ended, RemoteWork, TracedContext, stage_spans

#: What the spans that are left may take to be sent when a server ends.
FLUSH_SECONDS = 3.0

#: Ends of a request that are the server's failure; others are the client's, and no error of ours.
_ERRORS = frozenset(
    {
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.UNIMPLEMENTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    }
)


class OpenTelemetryTraces:
    """`Traces` into a provider, which it owns.

    A request is a span, a child of the one that its `traceparent` names, and its stages are
    children of that, as is what shards and stage actors did for it. They are made when it has
    ended: until then there are only lists of times.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("shardserve")

    def ended(self, context: TracedContext, ended: Ended) -> None:
        """See `Traces.ended`."""
        parent = propagate.extract(context.headers, getter=_GETTER) if context.headers else None
        span = self._tracer.start_span(
            ended.name,
            parent,
            SpanKind.SERVER,
            {**ended.attributes, "shardserve.request_id": context.request_id},
            start_time=context.started,
        )
        if not span.is_recording():
            return
        within = set_span_in_context(span)
        for stage, start, end in stage_spans(context.spent, context.started):
            self._tracer.start_span(stage, within, start_time=start).end(end)
        for work in context.remote:
            self._add_remote(work, within)
        if ended.code in _ERRORS:
            span.set_status(Status(StatusCode.ERROR, ended.message))
        span.end(time.time_ns())

    def close(self) -> None:
        """See `Traces.close`."""
        # It sends what is left, and waits for a collector that does not answer.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS)

    def _add_remote(self, work: RemoteWork, within: Context) -> None:
        seconds = {
            "shardserve.queue_seconds": work.queue_seconds,
            "shardserve.work_seconds": work.work_seconds,
        }
        span = self._tracer.start_span(work.name, within, attributes=seconds, start_time=work.began)
        span.end(work.began + round((work.queue_seconds + work.work_seconds) * 1e9))


def to_collector(collector: Collector) -> OpenTelemetryTraces:
    """Traces to a collector, in batches, by a thread of their own.

    OpenTelemetry's variables say the rest: the sampler, the attributes of the service, headers,
    certificates, and how many spans wait at most.
    """
    named = Resource.create({SERVICE_NAME: "shardserve"})
    provider = TracerProvider(
        resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(_exporter(collector)))
    return OpenTelemetryTraces(provider)


def _exporter(collector: Collector) -> SpanExporter:
    if collector.over_http:
        return HttpExporter(collector.url)
    return GrpcExporter(collector.url, insecure=collector.url.startswith("http://"))


class _HeadersGetter(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        value = carrier.get(key.lower())
        if value is None:
            return None
        return [value.decode("latin-1") if isinstance(value, bytes) else value]

    def keys(self, carrier: Headers) -> list[str]:
        return []


_GETTER = _HeadersGetter()
