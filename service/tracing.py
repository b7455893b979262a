"""Spans for OpenTelemetry: one for each classification, with its stages below, under the caller's trace.

Off unless SERVICE_OTLP_ENDPOINT is set. Stages are not timed a second time: their spans are made, when the request has
ended, of what the request knows of itself. No span has anything of the image.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from service.errors import StartError
from service.exchange import Exchange

if TYPE_CHECKING:
    from opentelemetry.trace import Span

SERVICE_NAME = "resnet-service"
NANOSECONDS = 1_000_000_000


class TracingError(StartError):
    """Traces are asked for and cannot be made. The message is one line that says what to do."""


class Tracing:
    """Makes spans and sends them, in batches and on a thread of its own."""

    def __init__(self, endpoint: str, sample: float) -> None:
        """Send to an OTLP collector.

        Args:
            endpoint: its URL for traces over HTTP, as in `http://collector:4318/v1/traces`.
            sample: share of the requests without a trace of their caller's that begin one.

        Raises:
            TracingError: the extra is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
            from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415
        except ImportError as error:
            raise TracingError("SERVICE_OTLP_ENDPOINT needs OpenTelemetry: install resnet-service[otel]") from error
        resource = Resource.create({"service.name": SERVICE_NAME})
        self._provider = TracerProvider(sampler=ParentBasedTraceIdRatio(sample), resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer(SERVICE_NAME)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, path: str, headers: Mapping[str, str]) -> "Span":
        """The span of a request, under that of `traceparent` if the caller sent one."""
        from opentelemetry.trace import SpanKind  # noqa: PLC0415  an extra

        context = self._propagator.extract(
            {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        )
        return self._tracer.start_span(f"{method} {path}", context=context, kind=SpanKind.SERVER)

    def end(self, span: "Span", exchange: Exchange) -> None:
        """Close a request's span, with one for each of its stages."""
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415
        from opentelemetry.trace.status import StatusCode  # noqa: PLC0415

        # Stages are known in the seconds of `time.monotonic()`; spans are in the nanoseconds of the clock on the wall.
        offset = time.time_ns() - int(time.monotonic() * NANOSECONDS)
        ended = exchange.started + exchange.timing.get("total", 0.0)
        span.set_attribute("http.response.status_code", exchange.status)
        span.set_attribute("request.id", exchange.request_id)
        span.set_attribute("model.name", exchange.model)
        span.set_attribute("model.version", exchange.version)
        if exchange.error_code:
            span.set_attribute("error.type", exchange.error_code)
        if exchange.status >= 500:
            span.set_status(StatusCode.ERROR)
        below = set_span_in_context(span)
        for stage in ("respond", "inference", "queue", "decode"):
            if stage in exchange.timing:
                began = ended - exchange.timing[stage]
                child = self._tracer.start_span(stage, context=below, start_time=offset + int(began * NANOSECONDS))
                child.end(offset + int(ended * NANOSECONDS))
                ended = began
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def trace_response(span: "Span") -> str:
    """The header that tells the caller which trace its request is in (W3C Trace Context, level 2)."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def trace_id(span: "Span") -> str:
    """For exemplars and log lines; empty for a request that is not sampled."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.trace_flags.sampled else ""
