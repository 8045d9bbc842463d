"""The port for HAProxy's agent checks: one word for each connection, whatever clients do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from streamcell.service.metrics.agent import AgentPort


class Rig:
    def __init__(self) -> None:
        self.ready = True
        self.agent = AgentPort("127.0.0.1", 0, lambda: self.ready)
        self.agent.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.agent.port), 30)

    def word(self, asked: socket.socket | None = None) -> bytes:
        with asked or self.connect() as asked:
            return b"".join(iter(lambda: asked.recv(64), b""))


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.agent.stop()


def test_it_says_whether_the_server_takes_sessions(rig: Rig) -> None:
    for ready, word in ((True, b"ready up\n"), (False, b"drain\n"), (True, b"ready up\n")):
        rig.ready = ready
        assert rig.word() == word


def test_clients_that_say_nothing_read_nothing_or_send_much_hold_up_nobody(rig: Rig) -> None:
    with ExitStack() as stack:
        for at in range(100):
            asked = stack.enter_context(rig.connect())
            if at % 2:
                asked.send(b"x" * 4096)
        assert rig.word() == b"ready up\n"


def test_what_a_client_sends_first_does_not_cost_it_the_answer(rig: Rig) -> None:
    for _ in range(20):
        asked = rig.connect()
        asked.send(b"who are you?\n")
        assert rig.word(asked) == b"ready up\n"


def test_a_port_that_is_taken_is_told_before_the_models_are_loaded(rig: Rig) -> None:
    with pytest.raises(OSError, match="choose a port by --agent-port"):
        AgentPort("127.0.0.1", rig.agent.port, lambda: True)


def test_a_stopped_port_is_closed(rig: Rig) -> None:
    rig.agent.stop()
    with pytest.raises(OSError, match="refused"):
        rig.connect()
