"""A resumable session outlives the front end that held its connection: it is in the engine process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from tests.support.frontends import processes


def test_front_ends_may_die(start_server: Callable[..., ServerProcess], folder: Path) -> None:
    server = start_server(folder, STREAMCELL_FRONTENDS="2")
    with connect(server.target) as client, client.session("sum", resume=True) as session:
        total = 0.0
        for kill in range(3):
            for x in range(20):
                total += x
                assert session.step([float(x)]).tolist() == [total]
            for process in processes(server, "frontend"):
                process.kill()
            assert session.step([1.0]).tolist() == [total + 1]
            total += 1
            assert session.resumes > kill
