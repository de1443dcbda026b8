"""Send spans to an OpenTelemetry collector: OTLP over HTTP, encoded as JSON, which every collector takes.

The exporter packages need other releases of OpenTelemetry than the rest of the lock does; this is all of them we need.
"""

import logging
from collections.abc import Sequence
from typing import Any

import httpx
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = logging.getLogger("bellwether.traces")
WAIT_S = 5.0


class JsonExporter(SpanExporter):
    """Post spans to a collector. What it does not take is dropped; the first of a row of faults is logged."""

    def __init__(self, url: str) -> None:
        """Take the whole URL of the collector, with its path."""
        self._url, self._http = url, httpx.Client(timeout=WAIT_S)
        self._is_out = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch of ended spans; runs in the thread of the span processor."""
        try:
            self._http.post(self._url, json=request_of(spans)).raise_for_status()
        except httpx.HTTPError as error:
            if not self._is_out:
                log.warning("traces are dropped: %s: %s. Start the collector, or unset BELLWETHER_OTLP_URL",
                            self._url, error)  # fmt: skip
            self._is_out = True
            return SpanExportResult.FAILURE
        self._is_out = False
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the connection."""
        self._http.close()


def request_of(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """Return the ExportTraceServiceRequest of these spans as OTLP's JSON; all are of one process."""
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(spans[0].resource.attributes if spans else {})},
                "scopeSpans": [{"scope": {"name": "bellwether"}, "spans": [_span(one) for one in spans]}],
            }
        ]
    }


def _span(span: ReadableSpan) -> dict[str, Any]:
    """Return one span; ids in hex digits and times as text, as OTLP's JSON has them."""
    context, parent = span.get_span_context(), span.parent
    assert context is not None, "a span that has ended has one"
    return {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        **({} if parent is None else {"parentSpanId": f"{parent.span_id:016x}"}),
        "name": span.name,
        "kind": span.kind.value + 1,  # OTLP counts from 1
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "status": {"code": span.status.status_code.value},
    }


def _attributes(values: Any) -> list[dict[str, Any]]:
    """Return attributes as OTLP's list of keys and typed values; a sequence as text."""
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    """Return one value with its type."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": value if isinstance(value, str) else str(value)}
