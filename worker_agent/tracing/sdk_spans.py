"""Our spans, sampling and resource in the types of the OpenTelemetry SDK; imported only where traces are asked for."""

import os
import socket

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from worker_agent.tracing.context import TraceContext
from worker_agent.tracing.spans import Kind, Sampler, Span

_SAMPLED, _UNSAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(0)
_KINDS = {kind: SpanKind[kind.name] for kind in Kind}
_OK = Status(StatusCode.UNSET)


class _Resource(Resource):
    """A resource whose hash is made once: the encoder asks for it with every span, and it is the hash of its JSON."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class _Scope(InstrumentationScope):
    """A scope whose hash is made once."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def resource(service: str) -> Resource:
    """This process, under the name that OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES give, else that of a service."""
    own = {"service.name": service, "service.instance.id": f"{socket.gethostname()}-{os.getpid()}"}
    whole = Resource.create(own).merge(OTELResourceDetector().detect())
    return _Resource(whole.attributes, whole.schema_url)


def sampler(provider: TracerProvider) -> Sampler:
    """Sampling as OTEL_TRACES_SAMPLER says."""
    should_sample = provider.sampler.should_sample
    is_recorded = Decision.RECORD_AND_SAMPLE

    def samples(parent: TraceContext | None, trace_id: int, name: str) -> bool:
        context = None
        if parent is not None:
            context = trace.set_span_in_context(NonRecordingSpan(_span_context(parent)))
        return should_sample(context, trace_id, name).decision is is_recorded

    return samples


class Converter:
    """Makes spans of the SDK of ours, all of one resource."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._scope = _Scope("convener")

    def __call__(self, span: Span) -> ReadableSpan:
        """The span, which has ended."""
        if span.error is not None:
            span.attributes["error.type"] = span.error
        return ReadableSpan(
            name=span.name,
            context=_span_context(span.context),
            parent=None if span.parent is None else _span_context(span.parent),
            resource=self._resource,
            attributes=span.attributes,
            links=() if span.link is None else (Link(_span_context(span.link)),),
            kind=_KINDS[span.kind],
            status=_OK if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=span.began_at,
            end_time=span.ended_at,
            instrumentation_scope=self._scope,
        )


def _span_context(context: TraceContext) -> SpanContext:
    flags = _SAMPLED if context.is_sampled else _UNSAMPLED
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=flags)
