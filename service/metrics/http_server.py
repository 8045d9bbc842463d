"""The HTTP port for monitoring: `/metrics`, `/livez` and `/readyz`, served by cheroot with a fixed pool of threads."""

from __future__ import annotations

import contextlib
import io
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import structlog
from cheroot import makefile
from cheroot.server import Gateway, HTTPConnection, HTTPRequest, HTTPServer
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import gzip_accepted

from streamcell.service.settings import Settings

from .page import Pages
from .request_reader import Connection, RequestReader

_log = structlog.get_logger(__name__)

_WORKERS = 4
_BACKLOG = 128
_MOST_BODY_BYTES = 1024
_MOST_NAMES = 100
_STOP_S = 2.0
_TEXT = "text/plain; charset=utf-8"

# Status, headers, body.
Answer = tuple[str, dict[str, str], bytes]


class MetricsServer:
    """Serves a registry's metrics and the server's liveness and readiness, from `start` to `stop`."""

    def __init__(self, settings: Settings, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        """Read the certificate. `ready`: True while the server takes new sessions.

        Raises:
            OSError: the certificate or its key cannot be used; the text names the files.
        """
        self._host = settings.metrics_host or settings.host
        self._wanted_port = settings.metrics_port
        self._pages = Pages(registry)
        self._ready = ready
        self._pair = settings.metrics_pair
        self._context: ssl.SSLContext | None = None
        if self._pair is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            self.reload()
        self._http: _Http | None = None
        self.port = 0

    def reload(self) -> None:
        """Read the certificate and its key again; new connections use them.

        Raises:
            OSError: they cannot be used; the previous ones stay.
        """
        if self._pair is None or self._context is None:
            return
        certificate, key = self._pair
        try:
            # Tried on another context first: one that fails half-way keeps the new certificate without its key.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._context):
                context.load_cert_chain(certificate, key)
        except OSError as error:
            raise OSError(
                f"metrics port: {_complaint(certificate, key, error)}; metrics_tls_cert and metrics_tls_key "
                "name a PEM certificate chain and its private key"
            ) from error

    def start(self) -> None:
        """Answer requests.

        Raises:
            OSError: the port cannot be bound.
        """
        http = _Http((self._host, self._wanted_port), self.answer, self._context)
        http.begin()
        self._http = http
        self.port = http.bind_addr[1]

    def stop(self) -> None:
        """Stop answering; returns within a few seconds, whatever clients do."""
        if self._http is not None:
            self._http.end()

    def answer(
        self, method: str, path: str, query: str, headers: dict[str, str], arrived_s: float = 0.0
    ) -> Answer:
        """The answer to a request that arrived at `arrived_s` (by `time.monotonic`), with a body for HEAD too."""
        if path not in ("/metrics", "/livez", "/readyz"):
            return "404 Not Found", {"Content-Type": _TEXT}, b"there are /metrics, /livez and /readyz\n"
        if method not in ("GET", "HEAD"):
            return (
                "405 Method Not Allowed",
                {"Content-Type": _TEXT, "Allow": "GET, HEAD"},
                b"GET or HEAD\n",
            )
        if path == "/livez":
            return "200 OK", {"Content-Type": _TEXT}, b"alive\n"
        if path == "/readyz":
            if self._ready():
                return "200 OK", {"Content-Type": _TEXT}, b"ready\n"
            return "503 Service Unavailable", {"Content-Type": _TEXT}, b"not ready\n"
        try:
            names = parse_qs(query, max_num_fields=_MOST_NAMES).get("name[]", [])
        except ValueError:
            return "400 Bad Request", {"Content-Type": _TEXT}, b"too many names\n"
        zipped = gzip_accepted(headers.get("Accept-Encoding", ""))
        kind, page = self._pages.page(arrived_s, headers.get("Accept", ""), names, zipped)
        more = {"Content-Encoding": "gzip"} if zipped else {}
        return "200 OK", {"Content-Type": kind, "Vary": "Accept, Accept-Encoding", **more}, page


def _complaint(certificate: Path, key: Path, error: OSError) -> str:
    for path in (certificate, key):
        if not path.is_file():
            return f"no file at {path}"
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"{key} is not the key of {certificate}"
    return f"{certificate} and {key} cannot be used: {error}"


def _slow(head: bytes) -> bool:
    """True if the answer may be a page of metrics, which may have to be made."""
    return not head.startswith((b"GET /livez ", b"GET /readyz ", b"HEAD /livez ", b"HEAD /readyz "))


class _Request(HTTPRequest):
    # One request per connection: its answer fits the socket's buffer, so no worker waits for a reader.
    close_connection = True


class _Connection(HTTPConnection):
    """A connection whose request has been read."""

    RequestHandlerClass = _Request

    def __init__(self, server: _Http, accepted: Connection) -> None:
        self.accepted = accepted

        def file(connection: Any, mode: str, size: int) -> Any:
            return io.BytesIO(accepted.head) if "r" in mode else makefile.StreamWriter(connection, mode, size)

        super().__init__(server, accepted.socket, file)
        self.remote_addr = accepted.address

    def close(self) -> None:
        """Close the connection, so that another can be answered."""
        with contextlib.suppress(OSError):
            super().close()
        self.accepted.close()
        self.server.reader.done(self.accepted)


class _Gateway(Gateway):
    """Passes cheroot's requests to `MetricsServer.answer`."""

    def respond(self) -> None:
        """Answer the request."""
        request = self.req
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in request.inheaders.items()}
        method = request.method.decode("latin-1")
        status, more, body = request.server.answer(
            method,
            request.path.decode("latin-1"),
            request.qs.decode("latin-1"),
            headers,
            request.conn.accepted.arrived_s,
        )
        request.status = status.encode()
        more["Content-Length"] = str(len(body))
        request.outheaders = [(key.encode(), value.encode("latin-1")) for key, value in more.items()]
        request.ensure_headers_sent()
        if method != "HEAD":
            request.write(body)


class _Http(HTTPServer):
    """cheroot's parser and pool of threads behind `RequestReader`."""

    request_queue_size = _BACKLOG
    max_request_header_size = 16 * 1024
    max_request_body_size = _MOST_BODY_BYTES
    shutdown_timeout = 1
    server_name = "streamcell"

    def __init__(
        self, address: tuple[str, int], answer: Callable[..., Answer], context: ssl.SSLContext | None
    ) -> None:
        super().__init__(
            address, _Gateway, minthreads=_WORKERS, maxthreads=_WORKERS, server_name="streamcell"
        )
        self.answer = answer
        self._context = context
        self.reader: RequestReader

    def begin(self) -> None:
        """Bind the port and begin to answer.

        Raises:
            OSError: the port cannot be bound.
        """
        failed: list[OSError] = []

        def prepare() -> None:
            try:
                self.prepare()
            except OSError as error:
                failed.append(error)

        # Threads that a daemon thread starts are daemons too, so a hanging one does not keep the process alive.
        starter = threading.Thread(target=prepare, daemon=True)
        starter.start()
        starter.join()
        if failed:
            host, port = self.bind_addr
            raise OSError(f"cannot listen on {host}:{port} for metrics: {failed[0]}") from failed[0]
        self.reader = RequestReader(
            self.socket,
            lambda accepted: self.requests.put(_Connection(self, accepted)),
            context=self._context,
            slow=_slow,
            most_slow=_WORKERS - 1,
        )
        self.reader.start()

    def end(self) -> None:
        """Stop answering; returns within a few seconds."""
        self.reader.stop(_STOP_S)
        stop = threading.Thread(target=self.stop, daemon=True)
        stop.start()
        stop.join(_STOP_S)

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        """Log faults of the server as errors, and all else, such as clients' mistakes, for debugging only."""
        if traceback:
            _log.error("metrics port", text=msg, exc_info=True)
        else:
            _log.debug("metrics port", text=msg)
