"""Servers killed with SIGKILL and started again: nothing acknowledged is lost, and nothing is doubled."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb
from tests.support.ports import free_port
from tests.support.resumable import Owner, Raw, step, sums

pytestmark = pytest.mark.alone

KILLS = int(os.environ.get("KILLS", "6"))  # `make chaos` takes more
WINDOW = 4


@pytest.fixture
def port() -> int:
    return free_port()


class Life:
    """A server that is killed and started again, on one port and one journal."""

    def __init__(self, folder: Path, journal: Path, port: int, frontends: int) -> None:
        self._arguments = (
            folder,
            "--port",
            str(port),
            "--durability",
            "process",
            "--journal-dir",
            str(journal),
        )
        self._frontends = frontends
        self.target = f"127.0.0.1:{port}"
        self.begin()

    def begin(self) -> None:
        folder, *flags = self._arguments
        self.server = ServerProcess(
            folder, *flags, "--frontends", str(self._frontends), "--max-sessions", "64"
        )
        self.server.wait_until_up()

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        process = psutil.Process(self.server.pid)
        for each in [*process.children(recursive=True), process]:
            os.kill(each.pid, signal.SIGKILL)
        self.server.process.wait()


@pytest.fixture
def life(folder: Path, tmp_path: Path, port: int, frontends: int) -> Iterator[Life]:
    made = Life(folder, tmp_path / "journal", port, frontends)
    yield made
    made.server.stop()


class Client(threading.Thread):
    """Streams messages of 1 to 6 steps of the number 1, resumes for ever, and holds each reply against the sum."""

    def __init__(self, target: str, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.owner = Owner(WINDOW)
        self._target, self._random, self._halt = target, random.Random(seed), stop
        self.sent: list[int] = []  # the steps of each message
        self.received = self.total = self.resumes = self.resent = 0
        self.fault: str | None = None

    def run(self) -> None:
        try:
            while not self._halt.is_set() and self.fault is None:
                try:
                    self._connected()
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                        self.fault = f"{error.code()}: {error.details()}"
                    time.sleep(0.05)
        except Exception as error:
            self.fault = repr(error)

    def _connected(self) -> None:
        first = not self.sent
        raw = Raw(self._target, self.owner.opening() if first else self.owner.resume(self.received))
        try:
            opened = raw.opened()
            assert opened.durability == pb.DURABILITY_PROCESS
            assert opened.applied >= self.received, f"lost: {opened.applied} of {self.received}"
            assert opened.applied <= len(self.sent), "applied what was never sent"
            self.resumes += not first
            self.resent += len(self.sent) - opened.applied
            for steps in self.sent[opened.applied :]:
                raw.send(step(*[1.0] * steps))
            while not self._halt.is_set():
                while len(self.sent) - self.received < WINDOW:
                    self.sent.append(self._random.randint(1, 6))
                    raw.send(step(*[1.0] * self.sent[-1]))
                reply = raw.reply()
                self.total += self.sent[self.received]
                self.received += 1
                assert sums(reply)[-1] == reply.step_index == self.total, (sums(reply), reply, self.total)
        finally:
            raw.cut()


@pytest.mark.conformance
def test_killed_servers_lose_no_acknowledged_step_and_double_none(
    life: Life, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    stop, chance = threading.Event(), random.Random(1)
    clients = [Client(life.target, seed, stop) for seed in range(16)]
    for client in clients:
        client.start()
    for _ in range(KILLS):
        before = [client.received for client in clients]
        assert eventually(
            lambda before=before: all(  # type: ignore[misc]
                client.fault or client.received > was for client, was in zip(clients, before, strict=True)
            )
        )
        time.sleep(chance.random() / 10)
        life.kill()
        life.begin()
    before = [client.received for client in clients]
    assert eventually(
        lambda: all(c.fault or c.received > was for c, was in zip(clients, before, strict=True))
    )
    stop.set()
    for client in clients:
        client.join()
    assert [client.fault for client in clients] == [None] * len(clients)
    assert all(client.resumes == KILLS for client in clients)
