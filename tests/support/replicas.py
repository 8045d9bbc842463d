"""Servers that share a store, each in processes of its own, and the client's side of a session in it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb

from .forked import ForkedServer
from .resumable import Owner, Raw, step, sums
from .valkey import ValkeyServer


class Replicas:
    """Servers with one store."""

    def __init__(self, models: Path, store: ValkeyServer, level: str, *flags: str) -> None:
        self._models = models
        self._flags = (
            "--durability", level, "--store", store.url, "--lease-s", "3", "--settle-s", "0", "--max-sessions", "16",
            *flags,
        )  # fmt: skip
        self._servers: list[ServerProcess] = []

    def begin(self, name: str, *flags: str) -> ServerProcess:
        """Begin to start another one; `wait_until_up` waits for it."""
        self._servers.append(ForkedServer(self._models, *self._flags, "--replica", name, *flags))
        return self._servers[-1]

    def pair(self) -> list[ServerProcess]:
        """Two that live, those of before or new ones; their names are "0", "1", …"""
        living = [each for each in self._servers if each.process.poll() is None]
        while len(living) < 2:
            living.append(self.begin(str(len(self._servers))))
        return [each.wait_until_up() for each in living]

    def name(self, server: ServerProcess) -> str:
        """The name of one of a pair."""
        return str(self._servers.index(server))

    def stop(self) -> None:
        """Kill those that run."""
        for each in self._servers:
            if each.process.poll() is None:
                each.process.send_signal(signal.SIGCONT)
                kill(each)


def kill(server: ServerProcess) -> None:
    """SIGKILL."""
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()


@contextmanager
def replicas(models: Path, store: ValkeyServer, level: str, *flags: str) -> Iterator[Replicas]:
    """Servers with one store, while the block runs."""
    made = Replicas(models, store, level, *flags)
    try:
        yield made
    finally:
        made.stop()


class Client:
    """The client's side of one session of `sum`: its messages, what it has of the replies, and what the store has.

    It does what a client must: it keeps what is not durable, sends it again, and counts.
    """

    def __init__(self, owner: Owner | None = None) -> None:
        self.owner = owner or Owner()
        self.sent: list[float] = []  # message n is at n - 1
        self.totals: list[float] = []  # the replies that were shown
        self.durable = 0
        self.raw: Raw
        self.opened: Any = None
        self._next = 1  # of the reply that comes next

    def open(self, target: str, **fields: Any) -> Any:
        """Open or resume it there, once; an error is raised as gRPC raises it."""
        received = len(self.totals)
        if self.opened is not None:
            fields |= {"resume": True, "received": received, "held": min(received, self.durable) + 1}
        self.raw = Raw(target, self.owner.opening(**fields))
        opened = self.raw.opened()
        self.opened = opened
        self.durable = max(self.durable, opened.durable)
        self._next = min(received, opened.applied) + 1
        for value in self.sent[opened.applied :]:
            self.raw.send(step(value))
        return opened

    def open_once_free(self, target: str, **fields: Any) -> Any:
        """The same, again and again while the replica says that it is not the session's yet."""
        while True:
            try:
                return self.open(target, **fields)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise

    def send(self, *values: float) -> None:
        for value in values:
            self.sent.append(value)
            self.raw.send(step(value))

    def step(self, *values: float) -> float:
        """Send messages one by one; the last total."""
        for value in values:
            self.send(value)
            self.receive(len(self.sent))
        return self.totals[-1]

    def receive(self, count: int) -> None:
        """Read until so many replies are here; each must be the one that a server without faults gives."""
        while len(self.totals) < count or self._next <= count:
            reply = self.raw.reply()
            assert not reply.HasField("moved"), reply
            self._note(reply)

    def wait_durable(self, number: int) -> None:
        """Read until the store has so many messages."""
        while self.durable < number:
            self._note(self.raw.reply())

    def _note(self, reply: pb.StreamResponse) -> None:
        if reply.HasField("durable"):
            assert reply.durable >= self.durable
            self.durable = reply.durable
        if not reply.outputs:
            return
        number, self._next = self._next, self._next + 1
        total = sum(self.sent[:number])
        assert sums(reply) == [total], (number, sums(reply), total)
        assert reply.step_index == number
        if number > len(self.totals):
            self.totals.append(total)
