"""The WebSocket port: an event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from streamcell.proto import pb
from streamcell.service.access.watched import Watched
from streamcell.service.addresses import cannot_listen, check_free
from streamcell.service.metrics.websocket_metrics import WebSocketFigures
from streamcell.service.settings import Settings

from .conversation import Conversation
from .frames import CODECS
from .handshake import Admission, Refusal, admitted
from .own_channel import OwnPort

_log = structlog.get_logger(__name__)

FLAG = "--websocket-port"

_METHOD = f"/{pb.DESCRIPTOR.services_by_name['StreamCell'].full_name}/Stream"
_HANDSHAKE_S = 10.0
_CLOSE_S = 2.0
_STOP_S = 5.0
# Connections whose handshake is not over, or is being refused.
_MOST_KNOCKING = 64


class WebSocketPort:
    """Carries each WebSocket's session to the server's own gRPC port, from `start` to `stop`."""

    def __init__(self, settings: Settings, figures: WebSocketFigures) -> None:
        """Try the port and read the certificate; `figures`: where it counts.

        Raises:
            OSError: the port cannot be bound, or the certificate cannot be used.
        """
        self._settings = settings
        self._figures = figures
        self._wanted_port = settings.websocket_port or 0
        check_free(settings.host, self._wanted_port, FLAG)
        self._own = OwnPort(settings)
        self._context: ssl.SSLContext | None = None
        self._watched = Watched()
        if settings.tls_cert is not None and settings.tls_key is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._context.load_cert_chain(settings.tls_cert, settings.tls_key)
            self._watched.add((settings.tls_cert, settings.tls_key), self.reload)
        # The library logs a client's mistakes as errors.
        self._logger = logging.Logger("websockets", logging.CRITICAL + 1)
        self._admissions: dict[ServerConnection, Admission] = {}
        self._connections: set[ServerConnection] = set()
        self._bound: Future[int] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="websocket", daemon=True)
        self.port = 0

    def reload(self) -> None:
        """Read the certificate again, for new connections.

        Raises:
            OSError: it cannot be used; the one before stays.
        """
        settings = self._settings
        self._own.reload()
        if self._context is not None and settings.tls_cert is not None:
            self._context.load_cert_chain(settings.tls_cert, settings.tls_key)

    def start(self, grpc_port: int) -> None:
        """Take WebSockets; `grpc_port`: where the server answers calls.

        Raises:
            OSError: the port cannot be bound.
        """
        self._own.port = grpc_port
        self._thread.start()
        try:
            self.port = self._bound.result()
        except OSError as error:
            raise cannot_listen(self._settings.host, self._wanted_port, error, FLAG) from error
        self._watched.start()

    def stop(self) -> None:
        """Close all WebSockets; returns within a few seconds. Call once the sessions have ended."""
        self._watched.stop()
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            if self._bound.done():
                raise
            self._bound.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        settings = self._settings
        server = await serve(
            self._answer,
            settings.host,
            self._wanted_port,
            ssl=self._context,
            ssl_handshake_timeout=None if self._context is None else _HANDSHAKE_S,
            process_request=self._admit,
            select_subprotocol=lambda socket, offered: Subprotocol(self._admissions[socket].subprotocol),
            create_connection=self._connection,  # type: ignore[arg-type]  # any maker does
            compression=None,  # a few bytes could become megabytes
            max_size=settings.max_message_bytes,
            max_queue=1,
            open_timeout=_HANDSHAKE_S,
            close_timeout=_CLOSE_S,
            ping_interval=None,  # `Conversation` pings: it knows when an answer cannot be there yet
            server_header="streamcell",
            logger=self._logger,
        )
        self._bound.set_result(server.sockets[0].getsockname()[1])
        await self._stopping.wait()
        await _closed(server)

    def _connection(self, *arguments: Any, **options: Any) -> ServerConnection:
        return _Connection(self, *arguments, **options)

    def arrived(self, socket: ServerConnection) -> bool:
        """Note a connection; False if there are too many without a session."""
        self._connections.add(socket)
        if len(self._connections) - len(self._admissions) <= _MOST_KNOCKING:
            return True
        self._figures.refused("handshakes")
        return False

    def lost(self, socket: ServerConnection) -> None:
        """Forget a connection."""
        self._connections.discard(socket)
        self._admissions.pop(socket, None)

    def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        try:
            if len(self._admissions) >= self._settings.max_websockets:
                raise Refusal(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    "limit",
                    "all WebSockets of this server are taken: --max-websockets",
                )
            self._admissions[socket] = admitted(request.headers, self._settings.websocket_origins)
        except Refusal as refusal:
            self._figures.refused(refusal.reason)
            return socket.respond(refusal.status, f"{refusal}\n")
        return None

    async def _answer(self, socket: ServerConnection) -> None:
        admission = self._admissions[socket]
        self._figures.opened()
        try:
            async with self._own.channel() as channel:
                call: Any = channel.stream_stream(_METHOD)(metadata=admission.metadata)
                conversation = Conversation(socket, call, CODECS[admission.subprotocol], self._figures)
                await conversation.run(self._settings.keepalive_s, self._settings.keepalive_timeout_s)
        except Exception as error:  # a bug ends one session, not the port
            _log.error("WebSocket failed", exc_info=error)
            socket.transport.abort()
        finally:
            self._figures.ended()


class _Connection(ServerConnection):
    """A connection that its port counts from the first byte on."""

    def __init__(self, port: WebSocketPort, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or cut it."""
        super().connection_made(transport)
        if not self._port.arrived(self):
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._port.lost(self)
        super().connection_lost(exc)


async def _closed(server: Server) -> None:
    server.close()
    await server.wait_closed()
