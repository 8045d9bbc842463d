"""A cluster on this machine: replicas of one server, the store that they share, and a proxy before them.

For the demos, the benchmarks and the tests; a real cluster has a machine for each part (docs/deploy.md).
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, Self

from . import local_proxies
from .errors import StreamCellError
from .local_programs import LocalProgram, find, find_all, free_port, taken
from .local_proxies import Ports
from .local_server import ServerProcess, ServerProcessError

Proxy = Literal["envoy", "haproxy"]
STORE_LEVELS = ("store-async", "store-sync")
NAMES = ("a", "b", "c")
_PASSED_S = 30.0


def valkey(port: int, folder: Path, *more: str) -> LocalProgram:
    """Start a Valkey server that keeps what it has in `folder`, which is made, with further arguments.

    Raises:
        ProgramMissing: it is not installed.
        ServerProcessError: the port is taken.
    """
    folder.mkdir(exist_ok=True)
    command: list[str | Path] = [
        find("valkey-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder,
        "--appendonly", "yes", "--save", "", *more,
    ]  # fmt: skip
    return LocalProgram(command, port, folder / "log")


class LocalCluster:
    """Replicas by name, with a store and a proxy. A context manager that starts all of it, and ends it.

    All of it ends with this process, however this process ends.

    Attributes:
        replicas: the servers that run, by name.
        store: the Valkey server; None at the levels that need none.
        proxy: Envoy or HAProxy; None without one.
        folder: files of the store and the proxy, and their output.
    """

    _server: ClassVar[type[ServerProcess]] = ServerProcess

    def __init__(
        self,
        models: Path,
        *flags: str,
        names: Sequence[str] = NAMES,
        durability: str = "store-async",
        proxy: Proxy | None = "envoy",
        module: Sequence[str] | None = None,
        ports: Callable[[], int] = free_port,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Find the programs; nothing is started yet.

        Args:
            models: the folder of models that each replica serves.
            flags: flags of `streamcell serve` for each.
            names: the replicas' names.
            durability: the level of the replicas; with a store level a Valkey server is started.
            proxy: what stands before the replicas.
            module: what a replica runs in place of the command line: see `ServerProcess`.
            ports: gives a free port of 127.0.0.1.
            say: told what is started.

        Raises:
            ProgramMissing: a program is not installed.
        """
        self._models, self._flags, self._durability, self._say = models, flags, durability, say
        self._module = module
        self._kind = proxy
        self._stored = durability in STORE_LEVELS
        find_all([*["valkey-server"] * self._stored, *([proxy] if proxy else [])])
        self.ports = {name: Ports(ports(), ports()) for name in names}
        self._store_port, self._proxy_port = ports(), ports()
        self.replicas: dict[str, ServerProcess] = {}
        self.store: LocalProgram | None = None
        self.proxy: LocalProgram | None = None
        self._stack = ExitStack()
        self.folder = Path()

    @property
    def names(self) -> tuple[str, ...]:
        """All replicas' names, of those that are down too."""
        return tuple(self.ports)

    @property
    def target(self) -> str:
        """Where clients connect: the proxy, or the first replica if there is none."""
        return f"127.0.0.1:{self._proxy_port if self._kind else next(iter(self.ports.values())).grpc}"

    def store_url(self, name: str) -> str:
        """Where replica `name` finds the store."""
        return f"valkey://127.0.0.1:{self._store_port}"

    def start(self) -> Self:
        """Start the store, the replicas and the proxy, and wait until all of them serve.

        Raises:
            ServerProcessError: a port is taken, or one of them did not start; those that did are ended.
        """
        every = [self._store_port, self._proxy_port, *(port for each in self.ports.values() for port in each)]
        if busy := [str(port) for port in every if taken(port)]:
            raise ServerProcessError(
                f"port {', '.join(busy)} of 127.0.0.1 is taken: does another cluster run?"
            )
        try:
            self.folder = Path(
                self._stack.enter_context(tempfile.TemporaryDirectory(prefix="streamcell-cluster-"))
            )
            if self._stored:
                self.store = self._stack.enter_context(self.valkey(self._store_port))
                self._say(f"Valkey stores the sessions at {self.store.target}")
            self._stack.callback(self._stop_replicas)
            for name in self.names:
                self.begin(name)
            for name in self.names:
                self.replicas[name].wait_until_up()
                self._say(f"replica {name} serves at {self.replicas[name].target}")
            if self._kind:
                self.proxy = self._stack.enter_context(self._start_proxy(self._kind))
                self.until_passed()
                self._say(f"{self.proxy_name} stands before them at {self.target}")
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def proxy_name(self) -> str:
        """What the proxy is called."""
        return {"envoy": "Envoy", "haproxy": "HAProxy"}.get(self._kind or "", "no proxy")

    def valkey(self, port: int, *more: str) -> LocalProgram:
        """Start a Valkey server that keeps what it has in `folder`, with further arguments."""
        return valkey(port, self.folder / f"valkey-{port}", *more)

    def configuration(self, kind: Proxy, port: int) -> str:
        """The proxy's file, which listens on `port`."""
        return {"envoy": local_proxies.envoy, "haproxy": local_proxies.haproxy}[kind](port, self.ports)

    def _start_proxy(self, kind: Proxy) -> LocalProgram:
        file = self.folder / {"envoy": "envoy.yaml", "haproxy": "haproxy.cfg"}[kind]
        file.write_text(self.configuration(kind, self._proxy_port))
        return LocalProgram(
            local_proxies.command(find(kind), file), self._proxy_port, self.folder / f"{kind}.log"
        )

    def until_passed(self) -> None:
        """Wait until the proxy has a replica for a call. Raises ServerProcessError if it has none for long."""
        from .blocking.client import Client
        from .channel import Options

        assert self.proxy is not None
        end_s = time.monotonic() + _PASSED_S
        with Client(self.proxy.wait_until_up().target, Options()) as client:
            while True:
                try:
                    if client.ready():
                        return
                except StreamCellError as error:
                    if time.monotonic() > end_s:
                        raise ServerProcessError(f"{self.proxy_name} passes no call on: {error}") from None
                time.sleep(0.02)

    def begin(self, name: str) -> ServerProcess:
        """Start replica `name`, which is down. It may not serve yet: `wait_until_up`."""
        ports = self.ports[name]
        flags = [
            "--port",
            str(ports.grpc),
            "--agent-port",
            str(ports.agent),
            "--durability",
            self._durability,
        ]
        if self._stored:
            flags += ["--store", self.store_url(name), "--replica", name]
        elif self._durability == "process":
            flags += ["--journal-dir", str(self.folder / f"journal-{name}")]
        self.replicas[name] = self._server(
            self._models,
            *flags,
            *self._flags,
            environment={each: None for each in os.environ if each.startswith("STREAMCELL_")},
            module=self._module or ("streamcell.cli.child", str(os.getpid()), str(self.folder)),
            own_group=True,
        )
        return self.replicas[name]

    def kill(self, name: str) -> None:
        """End a replica with SIGKILL."""
        server = self.replicas.pop(name)
        server.process.kill()
        server.stop()

    def terminate(self, name: str, timeout_s: float = 60.0) -> int:
        """Stop a replica with SIGTERM, as an update does, and wait; returns its exit code."""
        return self.replicas.pop(name).stop(timeout_s)

    def pause(self, name: str) -> None:
        """Stop a replica with SIGSTOP, as a virtual machine that is moved; `go_on` lets it go on."""
        self.replicas[name].process.send_signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Let a replica go on after `pause`."""
        self.replicas[name].process.send_signal(signal.SIGCONT)

    def _stop_replicas(self) -> None:
        for server in self.replicas.values():
            server.process.send_signal(signal.SIGCONT)
            server.ask_to_stop()
        for name in [*self.replicas]:
            self.terminate(name)

    def stop(self) -> None:
        """End everything, and remove the files."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
