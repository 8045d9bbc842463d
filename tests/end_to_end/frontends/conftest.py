"""Servers with two front ends, and clients on both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from streamcell.client import Client
from streamcell.client.local_server import ServerProcess
from tests.support.frontends import SESSIONS, Spread


@pytest.fixture
def serve(models_dir: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers with two front ends."""
    with ExitStack() as stack:

        def start(*flags: str) -> ServerProcess:
            return stack.enter_context(ServerProcess(models_dir, "--frontends", "2", *flags))

        yield start


@pytest.fixture
def server(serve: Callable[..., ServerProcess]) -> ServerProcess:
    return serve("--max-sessions", str(SESSIONS), "--queue-messages", "4")


@pytest.fixture
def spread(server: ServerProcess) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        yield Spread(server, stack).clients
