"""The HTTP port for monitoring: a status page, `/metrics`, `/livez`, `/readyz`, on a few of cheroot's threads."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import structlog
from cheroot import makefile
from cheroot.server import Gateway, HTTPConnection, HTTPRequest, HTTPServer
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import gzip_accepted

from streamcell.service.access.watched import Watched
from streamcell.service.addresses import cannot_listen, check_free
from streamcell.service.settings import Settings

from .door import Answer, Door
from .page import Pages
from .port_tls import PortTls
from .request_reader import Connection, RequestReader
from .status_page import HEADERS, StatusPage

_log = structlog.get_logger(__name__)

_WORKERS = 4
_BACKLOG = 128
_MOST_BODY_BYTES = 1024
_MOST_NAMES = 100
_STOP_S = 2.0
_TEXT = "text/plain; charset=utf-8"


class MetricsServer:
    """Serves a registry's metrics and the server's liveness and readiness, from `start` to `stop`."""

    def __init__(self, settings: Settings, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        """Read the certificate and try the port. `ready`: True while the server takes new sessions.

        Raises:
            OSError: the certificate, its key, or the tokens, keys or policy cannot be used, or the port cannot be
                bound; the text says why.
        """
        self._host = settings.metrics_host or settings.host
        self._wanted_port = settings.metrics_port
        check_free(self._host, self._wanted_port, "--metrics-port")
        self._pages = Pages(registry)
        self._status = StatusPage(self._pages)
        self._ready = ready
        self._watched = Watched()
        self._door = Door(settings, self._watched)
        self._tls: PortTls | None = None
        if (pair := settings.metrics_pair) is not None:
            self._tls = PortTls(settings, pair)
            self._watched.add(self._tls.paths, self._tls.reload)
        self._http: _Http | None = None
        self.port = 0

    def reload(self) -> None:
        """Read certificates, tokens, keys and policy again; if one cannot be used, it stays and the log says why."""
        self._watched.reload()

    def start(self) -> None:
        """Answer requests.

        Raises:
            OSError: the port cannot be bound.
        """
        http = _Http((self._host, self._wanted_port), self.answer, self._tls)
        http.begin()
        self._watched.start()
        self._http = http
        self.port = http.bind_addr[1]
        self._status.start()

    def stop(self) -> None:
        """Stop answering; returns within a few seconds, whatever clients do."""
        self._status.stop()
        self._watched.stop()
        if self._http is not None:
            self._http.end()

    def answer(
        self,
        method: str,
        path: str,
        query: str,
        headers: dict[str, str],
        arrived_s: float = 0.0,
        connection: object = None,
    ) -> Answer:
        """The answer to a request on `connection`'s socket that arrived at `arrived_s` (by `time.monotonic`).

        It has a body for HEAD too.
        """
        if path not in ("/", "/metrics", "/livez", "/readyz"):
            return "404 Not Found", {"Content-Type": _TEXT}, b"there are /, /metrics, /livez and /readyz\n"
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
        refusal = self._door.refusal(headers, connection)
        if refusal is not None:
            return refusal
        if path == "/":
            return "200 OK", dict(HEADERS), self._status.page(arrived_s)
        try:
            names = parse_qs(query, max_num_fields=_MOST_NAMES).get("name[]", [])
        except ValueError:
            return "400 Bad Request", {"Content-Type": _TEXT}, b"too many names\n"
        zipped = gzip_accepted(headers.get("Accept-Encoding", ""))
        kind, page = self._pages.page(arrived_s, headers.get("Accept", ""), names, zipped)
        more = {"Content-Encoding": "gzip"} if zipped else {}
        return "200 OK", {"Content-Type": kind, "Vary": "Accept, Accept-Encoding", **more}, page


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
            request.conn.accepted.socket,
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

    def __init__(self, address: tuple[str, int], answer: Callable[..., Answer], tls: PortTls | None) -> None:
        super().__init__(
            address, _Gateway, minthreads=_WORKERS, maxthreads=_WORKERS, server_name="streamcell"
        )
        self.answer = answer
        self._tls = tls
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
            check_free(host, port, "--metrics-port")  # cheroot's error does not say the cause
            raise cannot_listen(host, port, failed[0], "--metrics-port") from failed[0]
        self.reader = RequestReader(
            self.socket,
            lambda accepted: self.requests.put(_Connection(self, accepted)),
            context=None if self._tls is None else self._tls.context,
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
