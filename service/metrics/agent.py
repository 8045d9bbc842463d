"""What HAProxy's agent checks ask: a TCP port that says in a word whether the server takes new sessions."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from streamcell.service.addresses import cannot_listen, check_free
from streamcell.service.settings import Settings

_BACKLOG = 64
# Between two answers: whoever connects again and again gets no more of the server's time.
_PAUSE_S = 0.002
_MOST = 1024
# `ready` takes `drain` back, after a restart; `up` would not.
UP, DRAIN = b"ready up\n", b"drain\n"


def agent_port(settings: Settings, ready: Callable[[], bool]) -> AgentPort | None:
    """The port of the settings, if they name one; `ready` and errors as those of `AgentPort`."""
    return None if settings.agent_port is None else AgentPort(settings.host, settings.agent_port, ready)


class AgentPort:
    """Answers each connection with one line, from `start` to `stop`, and closes it. It waits for nobody."""

    def __init__(self, host: str, port: int, ready: Callable[[], bool]) -> None:
        """Try the port. `ready`: True while the server takes new sessions.

        Raises:
            OSError: it cannot be bound; the text says why.
        """
        self._host = host
        self._ready = ready
        self._socket: socket.socket | None = None
        self._stopping = threading.Event()
        self.port = port
        check_free(host, port, "--agent-port")

    def start(self) -> None:
        """Bind the port and answer.

        Raises:
            OSError: the port cannot be bound.
        """
        try:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            self._socket = socket.create_server((self._host, self.port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise cannot_listen(self._host, self.port, error, "--agent-port") from error
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._answer, args=(self._socket,), name="agent", daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        self._stopping.set()
        if self._socket is not None:
            with suppress(OSError):  # wakes the thread
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _answer(self, listening: socket.socket) -> None:
        while not self._stopping.is_set():
            with suppress(OSError):  # also if the process has no descriptor left
                connection, _ = listening.accept()
                with connection:
                    self._tell(connection)
            self._stopping.wait(_PAUSE_S)

    def _tell(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.send(UP if self._ready() else DRAIN)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(_MOST)  # with unread data, closing would reset the connection
