"""Traces as a collector receives them: OTLP over HTTP, read with the protocol's own messages."""

import gzip
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.system.server import running

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """Keeps every span that it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.spans: list[Span] = []
        self.services: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id.hex() == trace]


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.services |= {
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


def test_a_request_continues_its_callers_trace_with_a_span_for_each_stage(
    digits_models: Path, samples: list[Path]
) -> None:
    with collecting() as collector, running(digits_models, "--otlp-endpoint", collector.url) as server:
        image = samples[0].read_bytes()
        before = time.time_ns()
        answer = server.post("/classify", content=image, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        after = time.time_ns()
        accepted = {"accept": "application/openmetrics-text; version=1.0.0"}
        exposed = server.get("/metrics", headers=accepted).text  # before the next one: a bucket shows its last
        refused = server.post("/classify", content=b"no image")
        assert f'trace_id="{TRACE}"' in exposed
        assert exposed.endswith("# EOF\n")
        assert server.terminate() == 0  # what is left is sent before the end
        log = server.log.read_text()
    spans = collector.of(TRACE)
    (whole,) = [span for span in spans if span.name == "POST /classify"]
    assert whole.parent_span_id.hex() == PARENT
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{whole.span_id.hex()}-01"
    stages = {span.name: span for span in spans if span.parent_span_id == whole.span_id}
    assert set(stages) == {"decode", "queue", "inference", "respond"}
    order = [stages[name] for name in ("decode", "queue", "inference", "respond")]
    for first, second in itertools.pairwise(order):
        assert abs(first.end_time_unix_nano - second.start_time_unix_nano) < 1000
    assert before - 1e6 < order[0].start_time_unix_nano <= order[-1].end_time_unix_nano < after + 1e6
    attributes = {each.key: each.value for each in whole.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["model.name"].string_value == "digits"
    bad = collector.of(refused.headers["traceresponse"].split("-")[1])
    assert {each.key: each.value.string_value for each in bad[0].attributes}["error.type"] == "undecodable_image"
    assert collector.services == {"resnet-service"}
    assert f'"trace_id":"{TRACE}"' in log


def test_what_is_not_sampled_is_not_sent_and_a_collector_that_is_gone_disturbs_nobody(
    digits_models: Path, samples: list[Path]
) -> None:
    with collecting() as collector:
        flags = ("--otlp-endpoint", collector.url, "--trace-sample", "0")
        with running(digits_models, *flags) as server:
            answer = server.post("/classify", content=samples[0].read_bytes())
            flags_sent = int(answer.headers["traceresponse"].rpartition("-")[2], 16)
            assert not flags_sent & 1, "the bit for sampled"
            assert server.terminate() == 0
    assert not collector.spans
    with running(digits_models, "--otlp-endpoint", "http://127.0.0.1:9/v1/traces") as server:
        for sample in samples:
            assert server.post("/classify", content=sample.read_bytes()).status_code == 200
