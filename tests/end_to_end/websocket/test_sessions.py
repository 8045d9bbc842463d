"""A WebSocket is a client like any other: the same answers, errors, limits and ends."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import ClientConnection

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb

from .conftest import Open, port_of

Eventually = Callable[[Callable[[], bool]], bool]


def packed(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


def text(*values: float, **more: Any) -> str:
    return json.dumps({"inputs": [base64.b64encode(packed(*values)).decode()], **more})


OPEN = json.dumps({"open": {"model": "sum"}})


def outputs(frame: str | bytes) -> list[float]:
    said = json.loads(frame)
    return [float(each) for each in np.frombuffer(base64.b64decode(said["outputs"][0]), np.float32)]


def end(socket: ClientConnection) -> tuple[dict[str, Any], int]:
    """The error of the last frame, and the code that closes the WebSocket."""
    error: dict[str, Any] = json.loads(socket.recv(30))["error"]
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(30)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.reason == error["reason"]
    return error, closed.value.rcvd.code


@pytest.mark.conformance
def test_steps_in_json_are_the_sessions(server: ServerProcess, sockets: Open) -> None:
    one, other = sockets(server), sockets(server)
    for each in (one, other):
        each.send(OPEN)
        assert json.loads(each.recv(30))["opened"]["model"] == "sum"
    one.send(text(1, 2, tag=7))
    assert outputs(frame := one.recv(30)) == [1, 3]
    assert json.loads(frame)["tag"] == "7"
    other.send(text(10))
    assert outputs(other.recv(30)) == [10]
    one.send(text(4))
    assert outputs(one.recv(30)) == [7]
    with connect(server.target) as client:
        assert len(list(client.sessions())) == 2
    one.send(text(1))
    one.send("")
    assert outputs(one.recv(30)) == [8]
    with pytest.raises(ConnectionClosedOK):
        one.recv(30)


def test_steps_in_protobuf_are_the_sessions(server: ServerProcess, sockets: Open) -> None:
    stream = sockets(server, "streamcell.v1.proto")
    assert stream.subprotocol == "streamcell.v1.proto"
    for request in (
        pb.StreamRequest(open=pb.OpenSession(model="sum"), inputs=[packed(5)]),
        pb.StreamRequest(inputs=[packed(1)]),
    ):
        stream.send(request.SerializeToString())
    stream.send("")
    replies = [pb.StreamResponse.FromString(each) for each in stream if isinstance(each, bytes)]
    assert [reply.outputs[0] for reply in replies] == [packed(5), packed(6)]


@pytest.mark.parametrize(
    ("frames", "code", "reason"),
    [
        ([json.dumps({"open": {"model": "nobody"}})], 4005, "MODEL_NOT_FOUND"),
        (["{"], 4003, "MALFORMED_MESSAGE"),
        (["[" * 20_000], 4003, "MALFORMED_MESSAGE"),
        (['{"tag": "18446744073709551616"}'], 4003, "MALFORMED_MESSAGE"),
        (['{"inputs": ["\\ud800"]}'], 4003, "MALFORMED_MESSAGE"),
        ([b"\x00"], 4003, "MALFORMED_MESSAGE"),
        ([OPEN, OPEN], 4009, None),
    ],
    ids=[
        "no model",
        "no JSON",
        "nested",
        "too large",
        "surrogate",
        "binary",
        "opened twice",
    ],
)
def test_an_error_is_the_last_frame_and_the_code_that_closes(
    server: ServerProcess, sockets: Open, frames: list[str | bytes], code: int, reason: str | None
) -> None:
    stream = sockets(server)
    for frame in frames[:-1]:
        stream.send(frame)
        stream.recv(30)
    stream.send(frames[-1])
    error, closed = end(stream)
    assert (error["code"] + 4000, closed) == (code, code)
    assert reason in (None, error["reason"])
    assert error["message"]


def test_a_frame_longer_than_a_message_closes_and_ends_the_session(
    server: ServerProcess, sockets: Open, eventually: Eventually
) -> None:
    stream = sockets(server)
    stream.send(OPEN)
    stream.recv(30)
    stream.send(" " * 65_537)
    with pytest.raises(ConnectionClosedError) as closed:
        stream.recv(30)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
    with connect(server.target) as client:
        assert eventually(lambda: not list(client.sessions()))


@pytest.mark.parametrize("how", ["closed", "cut"])
def test_a_websocket_that_goes_away_ends_its_session(
    server: ServerProcess, sockets: Open, eventually: Eventually, how: str
) -> None:
    stream = sockets(server)
    stream.send(OPEN)
    stream.recv(30)
    with connect(server.target) as client:
        assert list(client.sessions())
        if how == "closed":
            stream.close()
        else:
            stream.socket.shutdown(socket.SHUT_RDWR)
        assert eventually(lambda: not list(client.sessions()))


def test_a_client_that_does_not_read_is_not_read_either(server: ServerProcess, sockets: Open) -> None:
    """Everything between the two stays bounded: the client's sends block at last, and nothing is lost."""
    stream = sockets(server, "streamcell.v1.proto", max_queue=1)
    stream.send(pb.StreamRequest(open=pb.OpenSession(model="sum")).SerializeToString())
    stream.recv(30)
    values = np.zeros(4000, np.float32)
    values[-1] = 1
    message = pb.StreamRequest(inputs=[values.tobytes()]).SerializeToString()
    before = server.metric("streamcell_steps_total")
    stream.socket.settimeout(2)
    sent = 0
    with suppress(TimeoutError, ConnectionClosedError):
        while sent < 20_000:  # 320 MB
            stream.send(message)
            sent += 1
    # Buffers of sockets at both ends, the queue of the session and a few frames.
    taken = (server.metric("streamcell_steps_total") - before) / 4000
    assert taken <= sent < 20_000


def test_there_are_so_many_websockets_and_no_more(
    server: ServerProcess, sockets: Open, eventually: Eventually
) -> None:
    assert eventually(lambda: server.metric("streamcell_websockets") == 0)  # others' are gone
    streams = [sockets(server) for _ in range(8)]
    with pytest.raises(InvalidStatus) as refused:
        sockets(server)
    assert refused.value.response.status_code == 503
    assert b"--max-websockets" in bytes(refused.value.response.body or b"")
    streams[0].close()

    def free() -> bool:
        try:
            sockets(server)
        except InvalidStatus:
            return False
        return True

    assert eventually(free)


def test_connections_that_say_nothing_are_cut_beyond_a_number(server: ServerProcess, sockets: Open) -> None:
    silent = [socket.create_connection(("127.0.0.1", port_of(server)), 30) for _ in range(80)]
    try:
        ends = 0
        for each in silent[-8:]:
            each.settimeout(30)
            try:
                ends += not each.recv(1)
            except ConnectionResetError:
                ends += 1
        assert ends == 8
    finally:
        for each in silent:
            each.close()


def test_a_shutdown_ends_sessions_by_its_name(
    start_server: Callable[..., ServerProcess], sums: Path, sockets: Open
) -> None:
    server = start_server(sums, "--websocket-port", "0", "--grace-s", "0")
    stream = sockets(server)
    stream.send(OPEN)
    stream.recv(30)
    server.ask_to_stop()
    error, closed = end(stream)
    assert (error["reason"], closed) == ("SERVER_DRAINING", 4014)
    assert server.stop() == 0


def test_a_peer_that_answers_no_ping_is_cut_and_one_that_is_only_quiet_is_not(
    start_server: Callable[..., ServerProcess], sums: Path, sockets: Open, eventually: Eventually
) -> None:
    # A busy machine's client answers within five seconds.
    server = start_server(sums, "--websocket-port", "0", "--keepalive-s", "0.2", "--keepalive-timeout-s", "5")
    quiet = sockets(server, ping_interval=None)
    quiet.send(OPEN)
    quiet.recv(30)
    dead = socket.create_connection(("127.0.0.1", port_of(server)), 30)
    dead.sendall(
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: streamcell.v1.json\r\n\r\n"
    )
    # A frame whose mask is zero.
    dead.sendall(bytes((0x81, 0x80 | len(OPEN), 0, 0, 0, 0)) + OPEN.encode())
    with connect(server.target) as client:
        assert eventually(lambda: len(list(client.sessions())) == 2)
        assert eventually(lambda: len(list(client.sessions())) == 1)
    quiet.send(text(3))
    assert outputs(quiet.recv(30)) == [3]
    dead.close()
