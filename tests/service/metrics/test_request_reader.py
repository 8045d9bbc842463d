"""What the thread that reads the heads of the metrics port's requests outlives."""

from __future__ import annotations

import socket
import threading
from queue import SimpleQueue

import pytest

from streamcell.service.metrics import request_reader
from streamcell.service.metrics.request_reader import Connection, RequestReader

WHOLE = b"GET /livez HTTP/1.1\r\n\r\n"


def test_a_connection_that_is_dropped_for_another_may_send_at_that_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_reader, "_MOST_CONNECTIONS", 2)
    answered: SimpleQueue[Connection] = SimpleQueue()
    looking, looked = threading.Event(), threading.Event()

    def slow(head: bytes) -> bool:
        looking.set()
        assert looked.wait(60)
        return False

    listener = socket.create_server(("127.0.0.1", 0))
    reader = RequestReader(listener, answered.put, context=None, slow=slow, most_slow=1)
    reader.start()

    def connect(sent: bytes) -> socket.socket:
        made = socket.create_connection(listener.getsockname(), timeout=30)
        made.sendall(sent)
        return made

    try:
        with connect(b"GET ") as oldest, connect(WHOLE):
            assert looking.wait(60)
            # While the thread is busy: one more than there may be, then a part of the oldest one's head.
            with connect(WHOLE):
                oldest.sendall(b"/livez ")
                looked.set()
                for _ in range(2):
                    first = answered.get(timeout=60)
                    first.close()
                    reader.done(first)
            with connect(WHOLE):
                assert answered.get(timeout=60).head == WHOLE
    finally:
        looked.set()
        reader.stop(30)
        listener.close()
