"""A server of a model that shows each lost and each doubled step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from tests.support.cutting_proxy import CuttingProxy
from tests.support.kill_points import serving
from tests.support.life import Life
from tests.support.parallel import made_once
from tests.support.ports import free_port
from tests.support.resumable import save_dice, save_sum
from tests.support.stored import Start
from tests.support.valkey import ValkeyServer, valkey


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    return made_once(tmp_path_factory, pytestconfig, "sums", lambda path: save_dice(save_sum(path)))


@pytest.fixture(scope="session")
def server(start_shared_server: Callable[..., ServerProcess], folder: Path) -> ServerProcess:
    return start_shared_server(folder, "--max-chunk", "4")


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[CuttingProxy]:
    with CuttingProxy(server.target) as made:
        yield made


@pytest.fixture(scope="session")
def states() -> Callable[[Any], dict[str, str]]:
    """The states of a server's live sessions, by id."""

    def states(server: ServerProcess) -> dict[str, str]:
        with connect(server.target) as client:
            return {session.id: session.state for session in client.sessions()}

    return states


@pytest.fixture(scope="module")
def life(folder: Path, tmp_path_factory: pytest.TempPathFactory, frontends: int) -> Iterator[Life]:
    """A server with a journal that can be killed and started again. Each test leaves it up."""
    made = Life(folder, tmp_path_factory.mktemp("life") / "journal", free_port(), frontends)
    yield made
    made.kill()
    made.server.stop()


@pytest.fixture(scope="module")
def shared() -> Iterator[ValkeyServer]:
    """A store for servers of this process."""
    with valkey() as made:
        yield made


@pytest.fixture
def start(folder: Path, shared: ValkeyServer) -> Iterator[Start]:
    """Starts servers with that store."""
    with ExitStack() as servers:
        yield lambda level="store-sync", name="a", **more: servers.enter_context(
            serving(
                models=more.pop("models", folder),
                store=shared.url,
                durability=level,
                replica=name,
                max_sessions=8,
                lease_s=30,
                settle_s=0,
                grace_s=0,
                **more,
            )
        )
