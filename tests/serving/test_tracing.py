"""Traces: nothing of OpenTelemetry without a collector, spans of the stages with one, JSON that the protocol reads."""

import subprocess
import sys

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import ValidationError
from support.collector import collecting, spans_in

from pipelines.settings import ROOT, Settings
from serving.service import tracing


def test_nothing_is_traced_or_loaded_without_a_collector():
    with tracing.span("features") as span:
        span.set_attribute("risk_s", 0.1)
    assert span is tracing.begin("ledger") is tracing.NO_SPAN
    assert tracing.headers() == {}
    code = (
        "import sys; from serving.service import tracing; tracing.begin('x').end(); "
        "sys.exit('opentelemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_spans_reach_a_collector_as_the_protocol_says_with_the_stage_under_its_request():
    with collecting() as (url, received):
        provider = tracing.start(url + "/", "bellwether-decision")
        with tracing.span("decide"):
            ledger = tracing.begin("ledger")
            with tracing.span("family") as family:
                family.set_attribute("rows", 3)
                family.set_attribute("risk_s", 0.5)
            ledger.end()
            passed_on = tracing.headers()["traceparent"]
        tracing.stop()
        provider.shutdown()
    ((path, body),) = received
    assert path == "/v1/traces"
    request = ParseDict(body, ExportTraceServiceRequest())  # unknown fields and wrong types are errors
    (resource,) = request.resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "bellwether-decision"
    spans = {span["name"]: span for span in spans_in(received)}
    assert {name: span.get("parentSpanId") for name, span in spans.items()} == {
        "decide": None, "ledger": spans["decide"]["spanId"], "family": spans["decide"]["spanId"],
    }  # fmt: skip
    decide = spans["decide"]
    assert passed_on.startswith(f"00-{decide['traceId']}-{decide['spanId']}-")  # a prediction elsewhere joins it
    assert {len(span["traceId"]) for span in spans.values()} == {32}
    assert spans["family"]["attributes"] == [
        {"key": "rows", "value": {"intValue": "3"}}, {"key": "risk_s", "value": {"doubleValue": 0.5}},
    ]  # fmt: skip


def test_a_collector_that_is_not_there_costs_a_log_line(caplog):
    from serving.service.otlp_exporter import JsonExporter

    exporter = JsonExporter("http://127.0.0.1:1/v1/traces")
    for _ in range(2):
        assert exporter.export([]).name == "FAILURE"
    exporter.shutdown()
    assert [record.message.split(":")[0] for record in caplog.records] == ["traces are dropped"]


@pytest.mark.parametrize("url", ["http://collector.example:4318", "collector:4318", "ftp://127.0.0.1"])
def test_a_collector_elsewhere_needs_tls(url):
    with pytest.raises(ValidationError, match="BELLWETHER_OTLP_URL"):
        Settings(otlp_url=url)
    assert Settings(otlp_url="https://collector.example").otlp_url
    assert Settings(otlp_url="http://127.0.0.1:4318").otlp_url
