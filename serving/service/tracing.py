"""OpenTelemetry traces of requests and of the stages of a decision, where BELLWETHER_OTLP_URL says where they go.

Off by default: then nothing of OpenTelemetry is called. A collector that does not answer costs no decision anything:
spans are sent by a thread of their own, and dropped where they cannot be.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from pipelines.settings import settings
from serving.service.connection_limits import in_worker
from serving.service.startup import starting

TRACES = "/v1/traces"  # the path of a collector's HTTP endpoint
NOT_TRACED = ("livez", "healthz", "readyz", "ready", "metrics", "docs.json", "schema.json")  # asked again and again


class Span(Protocol):
    """Time a part of a request."""

    def set_attribute(self, key: str, value: Any) -> None:
        """State a fact about it."""
        ...

    def end(self) -> None:
        """End it now."""
        ...


class _NoSpan:
    """Stand in for a span while nothing is traced."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


NO_SPAN = _NoSpan()
_tracer: Any = None  # of OpenTelemetry; None = nothing is traced


def trace_worker(container: Any, service: str) -> None:
    """Trace this process, its HTTP server with it, where it is a worker of BentoML and the settings say where to.

    container  of BentoML, from which its server takes the provider; call it before the server is built
    service    name that the spans carry
    """
    if not (in_worker() and settings().otlp_url):
        return
    from opentelemetry.util.http import ExcludeList

    with starting():
        container.tracer_provider.set(start(settings().otlp_url, service))
        container.tracing_excluded_urls.set(ExcludeList([f"/{path}$" for path in NOT_TRACED]))


def start(url: str, service: str) -> Any:
    """Trace from here on, and send to the collector at `url`; return the provider for the HTTP server."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from serving.service.otlp_exporter import JsonExporter

    base = url.rstrip("/").removesuffix(TRACES)
    return trace_with(BatchSpanProcessor(JsonExporter(base + TRACES)), service)


def trace_with(processor: Any, service: str) -> Any:
    """Trace from here on with this span processor; return the provider."""
    global _tracer
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}))
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("bellwether")
    return provider


def stop() -> None:
    """Trace no more."""
    global _tracer
    _tracer = None


def begin(name: str) -> Span:
    """Begin a span of the request that is served now; its owner ends it, in any thread."""
    span: Span = NO_SPAN if _tracer is None else _tracer.start_span(name)
    return span


def headers() -> dict[str, str]:
    """Return the headers by which another service's spans become part of the trace of this request; none without."""
    carrier: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.propagate import inject

        inject(carrier)
    return carrier


@contextmanager
def span(name: str) -> Iterator[Span]:
    """Time a block as a span of the request that is served now."""
    if _tracer is None:
        yield NO_SPAN
        return
    with _tracer.start_as_current_span(name) as current:
        yield current
