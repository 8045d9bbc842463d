"""Reads the heads of all HTTP requests on one thread, so that an incomplete request occupies no worker.

A client that sends nothing, or a byte a second, could occupy an HTTP server's pool of threads. Here a connection
goes to the pool once its request's head is complete, and only while the pool has a worker to spare.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable

_MOST_HEAD_BYTES = 16 * 1024
_READ_BYTES = 4096
_HEAD_S = 5.0  # from the connection to the whole head, TLS's handshake included
_ANSWER_S = 10.0  # from the head to the end of the answer
_TICK_S = 0.5  # between two looks for connections past their deadline
_MOST_CONNECTIONS = 256
# A page that fits the buffer is sent at once, however slow its reader is.
_SEND_BUFFER_BYTES = 512 * 1024
_END = b"\r\n\r\n"


class Connection:
    """One connection.

    Attributes:
        socket: the connection's socket, TLS or plain.
        address: the client's.
        head: the bytes received so far.
        arrived_s: when the head was complete, by `time.monotonic`; 0 before.
        deadline_s: when the connection is closed in any case, by `time.monotonic`.
        slow: True if its answer may take long.
    """

    def __init__(self, accepted: socket.socket, address: str) -> None:
        self.socket = accepted
        self.address = address
        self.head = b""
        self.arrived_s = 0.0
        self.deadline_s = time.monotonic() + _HEAD_S
        self.slow = False

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self.socket.close()


class RequestReader:
    """Accepts connections, reads the heads of their requests and passes them to the workers."""

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[Connection], None],
        *,
        context: Callable[[], ssl.SSLContext] | None,
        slow: Callable[[bytes], bool],
        most_slow: int,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            listener: bound and listening.
            answer: queues a connection for a worker, which must call `done`.
            context: what TLS has for a new connection; None: plain HTTP.
            slow: True for a head whose answer may take long.
            most_slow: the number of such answers at once, less than the number of workers.
        """
        listener.setblocking(False)
        self._listener = listener
        self._answer = answer
        self._context = context
        self._is_slow = slow
        self._free_slow = most_slow
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._woken, self._wake = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._reading: dict[Connection, None] = {}  # oldest first
        self._queued: deque[Connection] = deque()  # slow ones that wait for other slow ones
        self._answered: set[Connection] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="metrics-reader", daemon=True)

    def start(self) -> None:
        """Begin to accept connections."""
        self._thread.start()

    def stop(self, patience_s: float) -> None:
        """Stop accepting and close all connections that no worker is answering, within `patience_s`."""
        self._stopping = True
        self._wake.close()
        self._thread.join(patience_s)

    def done(self, connection: Connection) -> None:
        """Note that `connection` has been answered and closed."""
        following = None
        with self._lock:
            self._answered.discard(connection)
            if connection.slow:
                if self._queued:
                    following = self._queued.popleft()
                    self._answered.add(following)
                else:
                    self._free_slow += 1
        if following is not None:
            self._answer(following)

    def _run(self) -> None:
        while not self._stopping:
            waiting = self._reading or self._queued or self._answered
            for key, _ in self._selector.select(_TICK_S if waiting else None):
                if key.data in self._reading:  # it may just have been dropped for another
                    self._read_more(key.data)
                elif key.fileobj is self._listener:
                    self._accept()
            self._expire()
        for connection in (*self._reading, *self._queued):
            connection.close()
        self._selector.close()
        self._woken.close()

    def _accept(self) -> None:
        try:
            accepted, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor is free, or the client has already closed the connection
            self._drop_oldest()
            time.sleep(0.01)
            return
        with self._lock:
            busy = len(self._queued) + len(self._answered)
        if len(self._reading) + busy >= _MOST_CONNECTIONS and not self._drop_oldest():
            accepted.close()
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if self._context is not None:
            try:
                accepted = self._context().wrap_socket(
                    accepted, server_side=True, do_handshake_on_connect=False
                )
            except OSError:
                accepted.close()
                return
        connection = Connection(accepted, str(address[0]))
        self._reading[connection] = None
        self._selector.register(accepted, selectors.EVENT_READ, connection)
        self._read_more(connection)

    def _drop_oldest(self) -> bool:
        """Close the connection that has been sending its head for longest; False if there is none."""
        connection = next(iter(self._reading), None)
        if connection is None:
            return False
        self._forget(connection)
        connection.close()
        return True

    def _forget(self, connection: Connection) -> None:
        del self._reading[connection]
        self._selector.unregister(connection.socket)

    def _read_more(self, connection: Connection) -> None:
        """Read the bytes of a head that have arrived."""
        wanted = selectors.EVENT_READ
        try:
            while _END not in connection.head:
                data = connection.socket.recv(_READ_BYTES)
                connection.head += data
                if not data or len(connection.head) > _MOST_HEAD_BYTES:
                    self._forget(connection)
                    connection.close()
                    return
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except ssl.SSLWantWriteError:
            wanted = selectors.EVENT_WRITE
        except OSError:  # the client closed the connection, or does not speak TLS
            self._forget(connection)
            connection.close()
            return
        else:
            self._forget(connection)
            self._hand_over(connection)
            return
        self._selector.modify(connection.socket, wanted, connection)

    def _hand_over(self, connection: Connection) -> None:
        connection.arrived_s = now_s = time.monotonic()
        connection.deadline_s = now_s + _ANSWER_S
        connection.socket.settimeout(_ANSWER_S)
        connection.slow = self._is_slow(connection.head)
        with self._lock:
            if connection.slow:
                if not self._free_slow:
                    self._queued.append(connection)
                    return
                self._free_slow -= 1
            self._answered.add(connection)
        self._answer(connection)

    def _expire(self) -> None:
        now_s = time.monotonic()
        for connection in [each for each in self._reading if each.deadline_s < now_s]:
            self._forget(connection)
            connection.close()
        with self._lock:
            while self._queued and self._queued[0].deadline_s < now_s:
                self._queued.popleft().close()
            late = [each for each in self._answered if each.deadline_s < now_s]
        for connection in late:  # its worker's write then fails
            with contextlib.suppress(OSError):
                # Not SSLSocket.shutdown: the worker would then write plain text.
                socket.socket.shutdown(connection.socket, socket.SHUT_RDWR)
