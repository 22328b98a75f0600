"""Requests as OpenTelemetry's spans, sent to an OTLP collector over gRPC."""

from __future__ import annotations

import time

from opentelemetry import propagate
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

from shardserve.batching.errors import Code
from shardserve.router.servable import Headers
from shardserve.router.tracing import Ended, TracedContext, stage_spans

#: What the spans that are left may take to be sent when a server ends, in milliseconds.
FLUSH_MILLIS = 3000

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
    children of that. They are made when it has ended: until then there is only a list of times.
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
        if ended.code in _ERRORS:
            span.set_status(Status(StatusCode.ERROR, ended.message))
        span.end(time.time_ns())

    def close(self) -> None:
        """See `Traces.close`."""
        self._provider.force_flush(FLUSH_MILLIS)
        self._provider.shutdown()


def to_collector(endpoint: str) -> OpenTelemetryTraces:
    """Traces to a collector, in batches, by a thread of their own.

    OpenTelemetry's variables say the rest: the sampler, the attributes of the service, headers,
    certificates, and how many spans wait at most.
    """
    named = Resource.create({SERVICE_NAME: "shardserve"})
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
    exporter = OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OpenTelemetryTraces(provider)


class _HeadersGetter(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        value = carrier.get(key.lower())
        if value is None:
            return None
        return [value.decode("latin-1") if isinstance(value, bytes) else value]

    def keys(self, carrier: Headers) -> list[str]:
        return []


_GETTER = _HeadersGetter()
