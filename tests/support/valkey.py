"""Real Valkey servers for tests, each in a process of its own on a free port."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamcell.client.local_programs import LocalProgram, find, free_port
from streamcell.service.store.connection import Connection, StoreAddress


class ValkeyServer:
    """A server without persistence unless `options` say otherwise; it keeps port and folder over a restart."""

    def __init__(self, *options: str, server: str | None = None, tls: bool = False) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="valkey-"))
        self.tls = tls
        port = ("--port", "0", "--tls-port", str(self.port)) if tls else ("--port", str(self.port))
        self._command: list[str | Path] = [
            server or find("valkey-server"), *port, "--bind", "127.0.0.1", "--dir", self.folder, "--save", "",
            "--repl-diskless-sync-delay", "0", *options,
        ]  # fmt: skip
        self._program: LocalProgram | None = None

    @property
    def url(self) -> str:
        """For `--store`."""
        return f"{'valkeys' if self.tls else 'valkey'}://127.0.0.1:{self.port}"

    @property
    def address(self) -> StoreAddress:
        """The same, parsed."""
        return StoreAddress.parse(self.url)

    @property
    def pid(self) -> int:
        assert self._program is not None
        return self._program.process.pid

    def start(self) -> ValkeyServer:
        """Start it and wait until it answers."""
        self._program = LocalProgram(self._command, self.port, self.folder / "log").wait_until_up()
        return self

    def call(self, *parts: str | bytes | int) -> Any:
        """The answer to a command, from the test's own connection."""
        connection = Connection(self.address, "test", timeout_s=60.0)
        try:
            return connection.call(
                *(each if isinstance(each, bytes) else str(each).encode() for each in parts)
            )
        finally:
            connection.close()

    def record(self, session: bytes) -> dict[str, bytes]:
        """The fields of a session's record; none: there is no record."""
        flat = self.call("HGETALL", "sc:s:" + session.hex())
        return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}

    def kill(self) -> None:
        """End it at once, without writing anything."""
        if self._program is not None:
            self._program.kill()
            self._program = None

    def stop(self) -> None:
        """End it, and remove what it wrote."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def valkey(*options: str, server: str | None = None) -> Iterator[ValkeyServer]:
    """A Valkey while the block runs. `options` are valkey-server's; `server` another program, as redis-server."""
    made = ValkeyServer(*options, server=server)
    try:
        yield made.start()
    finally:
        made.stop()


@contextmanager
def replica_of(primary: ValkeyServer, *options: str) -> Iterator[ValkeyServer]:
    """A replica of `primary` that has everything, while the block runs."""
    # With a copy by way of a file, or a connection made at its start, it would wait for its timer: a second each.
    with valkey("--repl-diskless-load", "swapdb", *options) as replica:
        replica.call("REPLICAOF", "127.0.0.1", primary.port)
        while b"master_link_status:up" not in replica.call("INFO", "replication"):
            time.sleep(0.01)
        yield replica
