"""While a batch is answered its connection is held, on either thread; and it is free afterwards, whatever failed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamcell.proto import pb
from streamcell.service.batching.inline import InlinePolicy
from streamcell.service.protocols.native.stream import StreamSession
from streamcell.service.transport.segments import SEGMENTS, WORTH, Socket, cookie_of
from tests.service.batching.test_hot_path import MESSAGE, STEP, Rig, Wire

OPEN = pb.StreamRequest(open=pb.OpenSession(model="lstm"), inputs=[STEP]).SerializeToString()
PEER = "a peer of test_held_batch"


class Client(Wire):
    """A client whose connection is real; it notes whether that is held when a reply to it is sent."""

    peer = PEER

    def __init__(self, later: list[Callable[[], None]], connection: socket.socket) -> None:
        super().__init__(later)
        self.connection = connection
        self.held: list[bool] = []
        self.fails = False
        self.reads = threading.Event()  # until then a reply takes time
        self.reads.set()

    def reply(self, data: bytes, *, last: bool = True) -> None:
        self.reads.wait(60)
        super().reply(data, last=last)
        self.held.append(held(self.connection))
        if self.fails:
            self.fails = False
            raise RuntimeError("a handler's bug")


def held(connection: socket.socket) -> bool:
    return bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))


class NeverShort(InlinePolicy):
    """All runs are the engine thread's."""

    def ran(self, rows: int, cpu_s: float, read_apart: int = 0) -> None: ...


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
    with client, server:
        SEGMENTS.learn((), {PEER: Socket(server.fileno(), cookie_of(server))})
        yield server
        SEGMENTS.learn([PEER], {})


@pytest.fixture
def rig(models_dir: Path) -> Iterator[Rig]:
    made = Rig(models_dir, "lstm")
    yield made
    made.model.runner.stop()


def clients(rig: Rig, connection: socket.socket, count: int) -> list[tuple[Client, StreamSession]]:
    made = []
    for _ in range(count):
        client = Client(rig.later, connection)
        stream = StreamSession(client, rig.context)  # type: ignore[arg-type]
        assert stream.on_message(OPEN)
        rig.flush()
        made.append((client, stream))
    return made


def test_a_batch_on_the_reading_thread_holds_its_connection(rig: Rig, connection: socket.socket) -> None:
    streams = clients(rig, connection, WORTH)
    assert [client.held for client, _ in streams] == [[False]] * WORTH  # one reply alone is not held
    for _, stream in streams:
        stream.on_message(MESSAGE)
    rig.flush()
    assert [client.held for client, _ in streams] == [[False, True]] * WORTH
    assert not held(connection)


def test_a_batch_on_the_engine_thread_holds_its_connection(
    rig: Rig,
    connection: socket.socket,
    eventually: Callable[[Callable[[], bool]], bool],
) -> None:
    streams = clients(rig, connection, WORTH)
    rig.model.batcher.inline.policy = NeverShort()
    early, stream = streams[0]
    early.reads.clear()
    stream.on_message(MESSAGE)  # the engine thread, which answers it, waits until all have come
    for _, stream in streams:
        stream.on_message(MESSAGE)
    early.reads.set()
    assert eventually(lambda: all(len(client.replies) >= 2 for client, _ in streams[1:]))
    rig.model.runner.stop()
    assert [client.held for client, _ in streams[1:]] == [[False, True]] * (WORTH - 1)
    assert not held(connection)


def test_a_connection_is_free_although_answering_failed(rig: Rig, connection: socket.socket) -> None:
    streams = clients(rig, connection, WORTH)
    streams[1][0].fails = True
    for _, stream in streams:
        stream.on_message(MESSAGE)
    with pytest.raises(RuntimeError, match="a handler's bug"):
        rig.flush()
    assert streams[1][0].held == [False, True]
    assert not held(connection)
