"""A stand-in for an OpenTelemetry collector: OTLP over HTTP, parsed with the official protobufs."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """Collects from `endpoint`.

    Attributes:
        spans: all that have come.
        metrics: the newest of each, by name.
        services: the `service.name` of each resource that has come.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: dict[str, Metric] = {}
        self.services: set[str] = set()
        self.wrong: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                answer = outer.take(self.path, self.headers.get("Content-Type", ""), data)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str, kind: str, data: bytes) -> bytes:
        """Note what an export brings; returns the answer."""
        if kind != "application/x-protobuf":
            self.wrong.append(kind)
        if path == "/v1/traces":
            for of in ExportTraceServiceRequest.FromString(data).resource_spans:
                self._note(of.resource.attributes)
                for scope in of.scope_spans:
                    self.spans += scope.spans
            return bytes(ExportTraceServiceResponse().SerializeToString())
        if path == "/v1/metrics":
            for found in ExportMetricsServiceRequest.FromString(data).resource_metrics:
                self._note(found.resource.attributes)
                for scope_metrics in found.scope_metrics:
                    self.metrics.update({each.name: each for each in scope_metrics.metrics})
            return bytes(ExportMetricsServiceResponse().SerializeToString())
        self.wrong.append(path)
        return b""

    def _note(self, attributes: object) -> None:
        for each in attributes:  # type: ignore[attr-defined]
            if each.key == "service.name":
                self.services.add(each.value.string_value)
