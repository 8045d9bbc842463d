"""Servers of several processes: which there are, and clients on all of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import psutil

from streamcell.client import Client, connect
from streamcell.client.local_server import ServerProcess

SESSIONS = 24
FLAGS = ("--max-sessions", str(SESSIONS), "--queue-messages", "4")


# Connections of their own, so that the kernel deals them out over the front ends.
APART = {"grpc.use_local_subchannel_pool": 1}


TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


Eventually = Callable[[Callable[[], bool]], bool]


def processes(server: ServerProcess, kind: str) -> list[psutil.Process]:
    """The running processes of a kind, "engine" or "frontend"."""
    found = []
    for child in psutil.Process(server.pid).children():
        try:
            if f"streamcell.service.processes.{kind}" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


class Spread:
    """Clients with a connection each, on both front ends."""

    def __init__(self, server: ServerProcess, stack: ExitStack, at_least: int = 6) -> None:
        self.clients: list[Client] = []
        while len(self.clients) < at_least or 0 in (counts := self._connections(server)):
            client = stack.enter_context(connect(server.target, options=[*APART.items()]))
            client.models()
            self.clients.append(client)
            assert len(self.clients) < 64, f"connections of the front ends: {counts}"

    @staticmethod
    def _connections(server: ServerProcess) -> list[int]:
        return [
            sum(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp"))
            for process in processes(server, "frontend")
        ]
