"""Hears which sessions other replicas ask for."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from . import functions
from .connection import Connection
from .errors import StoreFailure
from .figures import Figures
from .lease import Lease

_log = structlog.get_logger(__name__)

_LOOK_S = 0.5
_PAUSE_S = 0.5
_RENEW_AFTER = 10_000  # messages, for the client's buffer only shrinks when it is empty


class Asked:
    """Listens on the channel of this replica's boot id, on a thread of its own."""

    def __init__(
        self, connection: Connection, lease: Lease, figures: Figures, asked_for: Callable[[bytes], None]
    ) -> None:
        """`asked_for` is called with the id of a session, on the thread that listens."""
        self._connection = connection
        self._lease = lease
        self._figures = figures
        self._asked_for = asked_for
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-asked", daemon=True)

    def start(self) -> None:
        """Listen from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._stopping.set()
        self._connection.abort()
        if self._thread.is_alive():
            self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen(self._lease.boot)
            except StoreFailure as error:
                if self._stopping.is_set():
                    return
                self._figures.failed(error, "listening")
                self._stopping.wait(_PAUSE_S)
            except Exception as error:  # a bug must not end it
                _log.error("listening to other replicas failed", exc_info=error)
                self._stopping.wait(_PAUSE_S)

    def _listen(self, boot: str) -> None:
        """Listen while this replica has that boot id.

        Raises:
            StoreFailure: the connection has broken.
        """
        self._connection.call(b"SUBSCRIBE", (functions.ASKED + boot).encode())
        for _ in range(_RENEW_AFTER):
            while (message := self._connection.listen(_LOOK_S)) is None:
                if self._stopping.is_set() or self._lease.boot != boot:
                    self._connection.close()
                    return
            if len(message) == 3 and message[0] == b"message":
                self._hear(message[2])
        self._connection.close()

    def _hear(self, text: object) -> None:
        try:
            session = bytes.fromhex(text.decode("ascii")) if isinstance(text, bytes) else b""
        except ValueError:
            return
        if len(session) == 16:
            self._asked_for(session)
