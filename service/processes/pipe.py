"""Messages between two processes over a socket pair. Sending never blocks; a thread of its own reads."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence

import structlog

_log = structlog.get_logger(__name__)

_HEADER = struct.Struct("<IBBQ")  # bytes of the body, kind, file descriptors, number
_READ_BYTES = 256 * 1024
_MOST_FDS = 64

# kind, number, body, file descriptors
OnMessage = Callable[[int, int, bytes, list[int]], None]


class Pipe:
    """One end. Any thread may call `send`; the reading thread calls `on_message` and `on_close`.

    What does not fit into the socket waits in memory; another thread sends it, once `start` has been called.
    """

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()
        self._unsent: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._unsent_there = threading.Event()
        self._closed = False

    def start(self, name: str, on_message: OnMessage, on_close: Callable[[], None]) -> None:
        """Begin to read, and to send what did not fit. `on_close` is called once, when either end has closed.

        Raises:
            RuntimeError: the machine gives no more threads. Later none is needed.
        """
        threading.Thread(target=self._write, name=f"{name}-writer", daemon=True).start()
        threading.Thread(
            target=self._read, args=(on_message, on_close), name=f"{name}-reader", daemon=True
        ).start()

    def send(self, kind: int, number: int = 0, body: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send one message after those before it. Does nothing if the other end has closed.

        File descriptors are copied: the caller may close its own.
        """
        data = memoryview(_HEADER.pack(len(body), kind, len(fds), number) + body)
        with self._lock:
            if self._closed:
                return
            sent = 0
            if not self._unsent:
                sent = self._try(data, fds)
            if sent < len(data):
                # An unsent message keeps copies of its descriptors.
                self._unsent.append((data[sent:], [os.dup(fd) for fd in fds] if not sent else ()))
                self._unsent_there.set()

    @property
    def behind(self) -> bool:
        """True if messages wait because the other end does not keep up."""
        return bool(self._unsent)

    def _try(self, data: memoryview, fds: Sequence[int]) -> int:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self._socket.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:  # the other end has closed: the reading thread notices too
            return len(data)

    def _write(self) -> None:
        ready = select.poll()
        ready.register(self._socket, select.POLLOUT)
        while True:
            self._unsent_there.wait()
            with contextlib.suppress(OSError):
                ready.poll()
            with self._lock:
                if self._closed:
                    return
                while self._unsent:
                    data, fds = self._unsent[0]
                    sent = self._try(data, fds)
                    if sent:
                        for fd in fds:
                            os.close(fd)
                        fds = ()
                    if sent < len(data):
                        self._unsent[0] = (data[sent:], fds)
                        break
                    self._unsent.popleft()
                else:
                    self._unsent_there.clear()

    def _read(self, on_message: OnMessage, on_close: Callable[[], None]) -> None:
        fds: deque[int] = deque()
        buffer = bytearray()
        try:
            while data := self._receive(fds):
                buffer += data
                at = 0
                while len(buffer) - at >= _HEADER.size:
                    size, kind, count, number = _HEADER.unpack_from(buffer, at)
                    end = at + _HEADER.size + size
                    if len(buffer) < end:
                        break
                    body = bytes(memoryview(buffer)[at + _HEADER.size : end])
                    at = end
                    on_message(kind, number, body, [fds.popleft() for _ in range(count)])
                del buffer[:at]
        except Exception as error:  # a bug: closing the pipe tells the other end, the log says why
            _log.error("message not understood", exc_info=error)
        finally:
            self.close()
            on_close()

    def _receive(self, fds: deque[int]) -> bytes:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                _READ_BYTES, socket.CMSG_LEN(_MOST_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return b""
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
                fds.extend(received)
        return data

    def close(self) -> None:
        """Stop sending and receiving."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._unsent.clear()
            self._unsent_there.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def pack(*parts: bytes) -> bytes:
    """Several byte strings as one."""
    return struct.pack(f"<{len(parts) + 1}I", len(parts), *map(len, parts)) + b"".join(parts)


def unpack(body: bytes) -> list[bytes]:
    """The byte strings that `pack` joined."""
    (count,) = struct.unpack_from("<I", body)
    sizes = struct.unpack_from(f"<{count}I", body, 4)
    parts, at = [], 4 + 4 * count
    for size in sizes:
        parts.append(body[at : at + size])
        at += size
    return parts
