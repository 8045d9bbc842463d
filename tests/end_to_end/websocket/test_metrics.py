"""What the metrics page says of WebSockets: how many are open, what they carried, and who was refused why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosedOK, InvalidStatus

from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb

from .conftest import Open
from .test_sessions import OPEN, packed, text

Eventually = Callable[[Callable[[], bool]], bool]


@pytest.fixture(scope="module")
def small(start_server: Callable[..., ServerProcess], sums: Path) -> ServerProcess:
    return start_server(sums, "--websocket-port", "0", "--max-websockets", "2")


def figures(server: ServerProcess) -> dict[str, float]:
    """The samples of WebSockets: by name, and by the label's value."""
    return {
        " ".join([sample.name.removeprefix("streamcell_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(server.metrics())
        for sample in family.samples
        if sample.name.startswith("streamcell_websocket")
    }


@pytest.mark.conformance
def test_the_page_counts_websockets_messages_bytes_and_refusals(
    small: ServerProcess, sockets: Open, eventually: Eventually
) -> None:
    assert set(figures(small).values()) == {0}
    one, other = sockets(small), sockets(small, "streamcell.v1.proto")
    request = text(1, 2, tag=7)
    replies = []
    for frame in (OPEN, request):
        one.send(frame)
        replies.append(one.recv(30))
    message = pb.StreamRequest(open=pb.OpenSession(model="sum"), inputs=[packed(5)]).SerializeToString()
    other.send(message)
    replies.append(other.recv(30))  # opened, and the step's outputs
    # What is sent is counted once it has left.
    assert eventually(lambda: figures(small)["websocket_messages_total sent"] == 3)
    now = figures(small)
    assert (now["websockets"], now["websockets_opened_total"]) == (2, 2)
    assert now["websocket_messages_total received"] == 3
    assert now["websocket_bytes_total received"] == len(OPEN) + len(request) + len(message)
    assert now["websocket_bytes_total sent"] == sum(map(len, replies))
    for more in ({}, {"url": "ws://localhost:1", "origin": "http://app.example"}, {"subprotocol": "other"}):
        with pytest.raises(InvalidStatus):
            sockets(small, **more)
        if not more:  # the limit is reached before anything else is looked at
            one.send("")
            with pytest.raises(ConnectionClosedOK):
                one.recv(30)
            assert eventually(lambda: figures(small)["websockets"] == 1)
    with pytest.raises(InvalidStatus):
        sockets(small, tokens=["streamcell.bearer.***"])

    def refused() -> dict[str, float]:
        return {name.split()[1]: value for name, value in figures(small).items() if "refused" in name}

    wanted = {"origin": 1, "subprotocol": 1, "token": 1, "limit": 1, "handshakes": 0}
    assert eventually(lambda: refused() == wanted)
    now = figures(small)
    assert (now["websockets"], now["websockets_opened_total"]) == (1, 2)


def test_an_error_is_a_message_too(small: ServerProcess, sockets: Open, eventually: Eventually) -> None:
    before = figures(small)
    stream = sockets(small)
    stream.send(json.dumps({"open": {"model": "ümlaut"}}, ensure_ascii=False))
    error = stream.recv(30)
    sent = "websocket_messages_total sent"
    assert eventually(lambda: figures(small)[sent] - before[sent] == 1)
    now = figures(small)
    assert now["websocket_bytes_total sent"] - before["websocket_bytes_total sent"] == len(error)
    assert now["websocket_bytes_total received"] - before["websocket_bytes_total received"] == len(OPEN) + 4
