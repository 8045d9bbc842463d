"""A cluster whose parts can be killed, stopped, cut off and failed over: `LocalCluster` for the tests."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from streamcell.client.local_cluster import LocalCluster, Proxy
from streamcell.client.local_programs import LocalProgram, free_port

from .cutting_proxy import CuttingProxy
from .forked import ForkedServer

FILES = Path(__file__).parents[2] / "deploy" / "proxies" / "cluster"
Eventually = Callable[[Callable[[], bool]], bool]


def valkey_says(port: int, *command: str) -> str:
    """What a Valkey server answers to a command: the first 64 KiB."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall((" ".join(command) + "\r\n").encode())
        return connection.recv(1 << 16).decode(errors="replace")


class Cluster(LocalCluster):
    """Replicas that reach the store by a wire each, and a standby of the store.

    Attributes:
        wires: what each replica reaches the store through.
        standby: a Valkey server that follows the store; None without.
    """

    _server = ForkedServer

    def __init__(self, models: Path, *flags: str, standby: bool = False, **more: Any) -> None:
        """`standby`: the store has a replica; `more`: as for `LocalCluster`."""
        super().__init__(models, *flags, **more)
        self._standby_port = free_port() if standby else 0
        self.standby: LocalProgram | None = None
        self.wires = {name: CuttingProxy(f"127.0.0.1:{self._store_port}") for name in self.names}
        for wire in self.wires.values():
            self._stack.enter_context(wire)

    def store_url(self, name: str) -> str:
        return f"valkey://{self.wires[name].target}"

    def configuration(self, kind: Proxy, port: int) -> str:
        """deploy/'s file, with other ports. It has three replicas; those that are not here are down."""
        (file,) = FILES.glob(f"{kind}.*")
        text = file.read_text()
        changes = {"8080": port}
        for number, ports in enumerate(self.ports.values(), 1):
            changes |= {f"850{number}": ports.grpc, f"851{number}": ports.agent}
        return re.sub(r"\b8(?:080|5[01]\d)\b", lambda found: str(changes.get(found[0], 1)), text)

    def start(self) -> Self:
        super().start()
        if self._standby_port:
            self.follow(self._standby_port)
        return self

    def _stop_replicas(self) -> None:
        for server in self.replicas.values():
            server.process.kill()
        super()._stop_replicas()

    def follow(self, port: int) -> None:
        """Start a standby on `port`, which is up once it has all that the store has."""
        assert self.store is not None
        self._leader = ["--replicaof", "127.0.0.1", str(self.store.port)]
        self.standby = self._stack.enter_context(self.valkey(port, *self._leader))

    def followed(self) -> bool:
        """True if the standby has all that the store has."""
        assert self.standby is not None
        return "master_link_status:up" in valkey_says(self.standby.port, "INFO", "replication")

    def fail_over(self, eventually: Eventually) -> None:
        """Kill the store. The standby is the store from now on, and the former one follows it."""
        assert self.store is not None
        assert self.standby is not None
        assert eventually(self.followed)
        self.store.kill()
        assert valkey_says(self.standby.port, "REPLICAOF", "NO", "ONE").startswith("+OK")
        former, self.store = self.store, self.standby
        self.store.command = self.store.command[: -len(self._leader)]  # from now on it follows nobody
        for wire in self.wires.values():
            wire.lead_to(self.store.target)
        self.follow(former.port)

    def restart_store(self) -> None:
        """Kill the store and start it again with what it has on its disk."""
        assert self.store is not None
        self.store.kill()
        self.store.start().wait_until_up()

    def restart_proxy(self) -> None:
        """Kill the proxy and start it again."""
        assert self.proxy is not None
        self.proxy.kill()
        self.proxy.start().wait_until_up()

    def restart(self, name: str) -> None:
        """Start a replica that is down, and wait until it serves."""
        self.begin(name).wait_until_up()
