"""A server of a model that shows each lost and each doubled step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from tests.support.parallel import made_once
from tests.support.resumable import save_sum


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    return made_once(tmp_path_factory, pytestconfig, "sums", save_sum)


@pytest.fixture(scope="session")
def server(start_shared_server: Callable[..., ServerProcess], folder: Path) -> ServerProcess:
    return start_shared_server(folder, "--max-chunk", "4")


@pytest.fixture(scope="session")
def states() -> Callable[[Any], dict[str, str]]:
    """The states of a server's live sessions, by id."""

    def states(server: ServerProcess) -> dict[str, str]:
        with connect(server.target) as client:
            return {session.id: session.state for session in client.sessions()}

    return states
