"""Servers with two front ends, and clients on both: one for the tests of a module that leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from streamcell.client import Client
from streamcell.client.local_server import ServerProcess
from tests.support.frontends import FLAGS, Spread


@pytest.fixture
def serve(models_dir: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers with two front ends, for one test."""
    with ExitStack() as stack:

        def start(*flags: str) -> ServerProcess:
            return stack.enter_context(ServerProcess(models_dir, "--frontends", "2", *flags))

        yield start


@pytest.fixture(scope="module")
def server(models_dir: Path) -> Iterator[ServerProcess]:
    with ServerProcess(models_dir, "--frontends", "2", *FLAGS) as server:
        yield server


@pytest.fixture(scope="module")
def spread(server: ServerProcess) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        yield Spread(server, stack).clients
