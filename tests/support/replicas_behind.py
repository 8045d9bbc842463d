"""Three servers behind the proxies of deploy/proxies/cluster/."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from streamcell.client.local_server import ServerProcess

from .forked import ForkedServer
from .ports import free_port
from .proxies import FILES, proxy

NAMES = "abc"


class Replicas:
    """Servers with names and ports of their own."""

    def __init__(self, models: Path, *flags: str) -> None:
        self._models, self._flags = models, flags
        self._ports = {name: (free_port(), free_port()) for name in NAMES}
        self.servers: dict[str, ServerProcess] = {}
        for name in NAMES:
            self.begin(name)
        for server in self.servers.values():
            server.wait_until_up()

    def begin(self, name: str) -> ServerProcess:
        port, agent = map(str, self._ports[name])
        more = ("--port", port, "--agent-port", agent, "--replica", name)
        self.servers[name] = ForkedServer(self._models, *more, *self._flags)
        return self.servers[name]

    def begin_again(self) -> None:
        """Start those that a test which failed has left dead."""
        for name, server in self.servers.items():
            if server.process.poll() is not None:
                self.begin(name).wait_until_up()

    def kill(self, name: str) -> None:
        server = self.servers[name]
        server.process.kill()
        server.stop()

    def behind(self, name: str, program: Callable[[str], str], folder: Path) -> AbstractContextManager[str]:
        """Start a proxy before them, on its file; yields its address."""
        changes: list[tuple[str, str]] = []
        for number, ports in enumerate(self._ports.values(), 1):
            changes.append((f"850{number}", str(ports[0])))
            if name == "haproxy":
                changes.append((f"851{number}", str(ports[1])))
        return proxy(name, program, folder, *changes, files=FILES / "cluster")

    def stop(self) -> None:
        for server in self.servers.values():
            server.process.kill()
            server.stop()

    def agent(self, name: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self._ports[name][1]), 60) as asked:
            return b"".join(iter(lambda: asked.recv(64), b""))


@contextmanager
def replicas_of(models: Path, *flags: str) -> Iterator[Replicas]:
    """Three servers of a folder of models, while the block runs."""
    made = Replicas(models, *flags)
    try:
        yield made
    finally:
        made.stop()
