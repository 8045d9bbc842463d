"""HTTP/2 frames made by hand, to do what no gRPC library does (RFC 9113; header fields as literals of RFC 7541)."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import defaultdict
from types import TracebackType

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 16_384
_WINDOW = 65_535


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 127
    return bytes((len(data),)) + data


def request_headers(path: str) -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(b"\x00" + _literal(name) + _literal(value) for name, value in fields.items())


def message(data: bytes, *, announced: int | None = None) -> bytes:
    """A gRPC message with its prefix, which may announce another length."""
    return struct.pack(">BI", 0, len(data) if announced is None else announced) + data


class RawConnection:
    """A client's connection. A thread reads frames, answers settings and pings, and keeps what the windows allow.

    Attributes:
        streams_allowed: what the server's SETTINGS_MAX_CONCURRENT_STREAMS says; None for nothing.
        ended: the streams that the server has ended, with the bytes of their last header block.
        gone: the server has closed the connection.
    """

    def __init__(self, target: str, *, window: int = _WINDOW, patience_s: float = 60.0) -> None:
        """`window`: how much of a stream's replies the server may send; it is never given more.

        Raises:
            OSError: the server did not answer within `patience_s`, or closed the connection.
        """
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.streams_allowed: int | None = None
        self.ended: dict[int, bytes] = {}
        self.pings = 0
        self.gone = threading.Event()
        self.settled = threading.Event()
        self._next = 1
        self._windows: dict[int, int] = defaultdict(int)
        self._stream_window = self._connection_window = _WINDOW
        self._changed = threading.Condition()
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, window)))
        threading.Thread(target=self._read, daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: self.settled.is_set() or self.gone.is_set(), patience_s)
        if not self.settled.is_set():
            self.close()
            raise OSError("the server did not answer")

    def open(self, path: str) -> int:
        """Begin a call; its stream."""
        (stream,) = self.open_many(path, 1)
        return stream

    def open_many(self, path: str, count: int) -> list[int]:
        """Begin `count` calls at once; their streams."""
        streams = list(range(self._next, self._next + 2 * count, 2))
        self._next += 2 * count
        headers = request_headers(path)
        self.socket.sendall(b"".join(frame(HEADERS, END_HEADERS, stream, headers) for stream in streams))
        return streams

    def reset(self, streams: list[int]) -> None:
        self.socket.sendall(b"".join(frame(RST_STREAM, 0, each, struct.pack(">I", 8)) for each in streams))

    def open_and_reset(self, path: str, count: int) -> None:
        """What is called rapid reset."""
        headers = request_headers(path)
        data = bytearray()
        for stream in range(self._next, self._next + 2 * count, 2):
            data += frame(HEADERS, END_HEADERS, stream, headers)
            data += frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
        self._next += 2 * count
        self.socket.sendall(data)

    def send(self, stream: int, data: bytes, patience_s: float = 5.0) -> int:
        """Send as much of `data` as the windows allow in time; how much that was."""
        at = 0
        while at < len(data):
            with self._changed:
                if not self._changed.wait_for(lambda: self._room(stream), patience_s) or self._over(stream):
                    return at
                size = min(self._room(stream), len(data) - at, FRAME_BYTES)
                self._connection_window -= size
                self._windows[stream] -= size
            try:
                self.socket.sendall(frame(DATA, 0, stream, data[at : at + size]))
            except OSError:
                return at
            at += size
        return at

    def _room(self, stream: int) -> int:
        if self._over(stream):
            return 1  # nothing to wait for
        return max(0, min(self._connection_window, self._windows[stream] + self._stream_window))

    def _over(self, stream: int) -> bool:
        return self.gone.is_set() or stream in self.ended

    def _read(self) -> None:
        try:
            while True:
                head = self._receive(9)
                length = int.from_bytes(head[:3], "big")
                kind, flags, stream = struct.unpack(">BBI", head[3:])
                self._came(kind, flags, stream, self._receive(length))
        except OSError:
            with self._changed:
                self.gone.set()
                self._changed.notify_all()

    def _receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise OSError("closed")
            data += part
        return bytes(data)

    def _came(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        with self._changed:
            if kind == SETTINGS and not flags & ACK:
                for at in range(0, len(payload), 6):
                    name, value = struct.unpack_from(">HI", payload, at)
                    if name == 3:
                        self.streams_allowed = value
                    elif name == 4:
                        self._stream_window = value
                self.socket.sendall(frame(SETTINGS, ACK, 0))
                self.settled.set()
            elif kind == PING and not flags & ACK:
                self.pings += 1
                self.socket.sendall(frame(PING, ACK, 0, payload))
            elif kind == WINDOW_UPDATE:
                (more,) = struct.unpack(">I", payload)
                if stream:
                    self._windows[stream] += more
                else:
                    self._connection_window += more
            elif kind == RST_STREAM:
                self.ended.setdefault(stream, b"")
            elif kind in (HEADERS, DATA) and flags & END_STREAM:
                self.ended[stream] = payload
            self._changed.notify_all()

    def wait_until_ended(self, stream: int) -> bytes:
        """The last header block of a stream that the server ends."""
        with self._changed:
            assert self._changed.wait_for(lambda: stream in self.ended or self.gone.is_set(), 60)
        return self.ended.get(stream, b"")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
