"""Servers with a WebSocket port, and sockets to it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from streamcell.client.local_server import ServerProcess
from tests.support.resumable import save_sum

Open = Callable[..., ClientConnection]


def port_of(server: ServerProcess) -> int:
    """The port that the log names."""
    port: int = next(line["websocket_port"] for line in server.log if line.get("event") == "serving")
    return port


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output is the sum of all its inputs."""
    folder = tmp_path_factory.mktemp("sums")
    save_sum(folder)
    return folder


@pytest.fixture(scope="module")
def server(start_server: Callable[..., ServerProcess], sums: Path) -> ServerProcess:
    return start_server(
        sums, "--websocket-port", "0", "--max-websockets", "8", "--max-message-bytes", "65536"
    )


@pytest.fixture
def sockets() -> Iterator[Open]:
    """Opens WebSockets to a server's port; all are closed after the test."""
    with ExitStack() as stack:

        def open_(
            server: ServerProcess, subprotocol: str = "streamcell.v1.json", **more: Any
        ) -> ClientConnection:
            tokens: list[Any] = more.pop("tokens", [])
            url = more.pop("url", f"ws://127.0.0.1:{port_of(server)}")
            more.setdefault("compression", None)
            more["sock"] = socket.create_connection(("127.0.0.1", port_of(server)), 30)
            return stack.enter_context(connect(url, subprotocols=[subprotocol, *tokens], **more))

        yield open_
