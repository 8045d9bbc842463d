"""Servers killed with SIGKILL and started again: nothing acknowledged is lost, and nothing is doubled."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from streamcell.proto import pb
from tests.support.frontends import Eventually
from tests.support.kills import GONE, Checker, check_over_kills
from tests.support.life import Life
from tests.support.ports import free_port
from tests.support.resumable import Owner, Raw, step, sums
from tests.support.waiting import waited

KILLS = int(os.environ.get("KILLS", "4"))  # `make chaos` takes more
ROUND = 6  # engine processes of one supervisor: it restarts them after pauses that grow
WINDOW = 4


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def live(folder: Path, tmp_path: Path, port: int) -> Iterator[Callable[[int], Life]]:
    """Starts a life with so many front ends."""
    made: list[Life] = []

    def live(frontends: int) -> Life:
        made.append(Life(folder, tmp_path / f"journal {len(made)}", port, frontends))
        return made[-1]

    yield live
    for each in made:
        each.server.stop()


class Client(Checker):
    """Streams messages of 1 to 6 steps of the number 1, resumes for ever, and holds each reply against the sum."""

    def __init__(self, target: str, seed: int) -> None:
        super().__init__(target, seed)
        self.owner = Owner(WINDOW)
        self.sent: list[int] = []  # the steps of each message
        self.total = self.resumes = self.resent = 0

    def check(self) -> None:
        while not self.halt.is_set():
            try:
                self._connected()
            except grpc.RpcError as error:
                if error.code() not in GONE:
                    raise
                time.sleep(0.05)

    def _connected(self) -> None:
        first = not self.sent
        raw = Raw(self.target, self.owner.opening() if first else self.owner.resume(self.received))
        try:
            opened = raw.opened()
            assert opened.durability == pb.DURABILITY_PROCESS
            assert opened.applied >= self.received, f"lost: {opened.applied} of {self.received}"
            assert opened.applied <= len(self.sent), "applied what was never sent"
            self.resumes += not first
            self.resent += len(self.sent) - opened.applied
            for steps in self.sent[opened.applied :]:
                raw.send(step(*[1.0] * steps))
            while not self.halt.is_set():
                while len(self.sent) - self.received < WINDOW:
                    self.sent.append(self.random.randint(1, 6))
                    raw.send(step(*[1.0] * self.sent[-1]))
                reply = raw.reply()
                self.total += self.sent[self.received]
                self.received += 1
                assert sums(reply)[-1] == reply.step_index == self.total, (sums(reply), reply, self.total)
        finally:
            raw.cut()


def killed(target: str, kill: Callable[[], None], eventually: Eventually, kills: int = KILLS) -> list[Client]:
    """Clients that have been served while something was killed so often."""
    clients = [Client(target, seed) for seed in range(16)]
    # More replies than can be on their way: at least one comes from what was started after the kill.
    check_over_kills(clients, kill, kills, eventually, WINDOW + 1)
    return clients


@pytest.mark.conformance
def test_killed_servers_lose_no_acknowledged_step_and_double_none(
    live: Callable[[int], Life], frontends: int, eventually: Eventually
) -> None:
    life = live(frontends)
    clients = killed(life.target, life.again, eventually)
    assert all(client.resumes == KILLS for client in clients)


def test_killed_engine_processes_break_no_stream_besides(
    live: Callable[[int], Life], eventually: Eventually
) -> None:
    for done in range(0, KILLS, ROUND):
        life, kills = live(2), min(ROUND, KILLS - done)
        clients = killed(life.target, life.kill_engine, eventually, kills)
        assert all(client.resumes == 0 for client in clients)
        for name, count in (
            ("streamcell_process_restarts_total", kills),
            ("streamcell_stream_pause_seconds_count", len(clients)),
        ):
            assert waited(lambda name=name, count=count, life=life: life.server.metric(name) == count)
        life.server.stop()
