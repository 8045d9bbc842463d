"""Clients of sessions in a shared store: each steps one without end, follows it when it moves, and takes no error.

Their model is `sum`: a lost or doubled step shows in each reply that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from streamcell.client import Client, connect
from streamcell.proto import pb

from .frontends import Eventually
from .kills import Checker
from .resumable import Owner, Raw, step, sums

WINDOW = 4
_PAUSE_S = 0.02


class PythonWalker(Checker):
    """A session of a Python client, its target, which follows moves by itself."""

    def __init__(self, client: Client, level: int, seed: int) -> None:
        super().__init__(client, seed)
        self._level: Any = pb.Durability.Name(level).removeprefix("DURABILITY_").lower().replace("_", "-")

    def check(self) -> None:
        total = 0
        with self.target.session("sum", resume=True, durability=self._level) as session:
            while not self.halt.is_set():
                values = [self.random.randint(1, 9) for _ in range(self.random.randint(1, WINDOW))]
                for value in values:
                    session.send([value])
                for value in values:
                    total += value
                    assert session.receive().tolist() == [total]
                    self.received += 1
                self.halt.wait(_PAUSE_S)
            assert session.step_index == self.received


class Walker(Checker):
    """A client on the wire, which takes no error at all.

    Attributes:
        moves: how often its session has moved.
        replica: which one has the session.
    """

    def __init__(self, target: Callable[[], str], durability: int, seed: int) -> None:
        """`target`: where it opens the session, each time."""
        super().__init__(target, seed)
        self._durability = durability
        self._owner = Owner(WINDOW)
        self._sent: list[int] = []
        self._raw: Raw
        self.moves = 0
        self.replica = ""

    def __str__(self) -> str:
        return f"{self._owner.id} at {self.replica} after {self.moves} moves and {self.received} steps"

    def check(self) -> None:
        self._open()
        while not self.halt.is_set():
            for _ in range(self.random.randint(1, WINDOW)):
                self._sent.append(self.random.randint(1, 9))
                self._raw.send(step(self._sent[-1]))
            while self.received < len(self._sent):
                self._take(self._raw.reply())
            self.halt.wait(_PAUSE_S)
        self._raw.close(self.received)
        self._raw.channel.close()

    def _open(self, **fields: Any) -> None:
        opening = self._owner.opening(durability=self._durability, **fields)
        self._raw = Raw(self.target(), opening, metadata=[("streamcell-session", self._owner.id)])
        opened = self._raw.opened()
        assert opened.applied == self.received, f"{opened.applied} applied, {self.received} answered"
        self.replica = opened.replica

    def _take(self, reply: pb.StreamResponse) -> None:
        if reply.HasField("moved"):
            self._follow()
        elif reply.outputs:
            self.received += 1
            assert sums(reply) == [sum(self._sent[: self.received])], (self.received, sums(reply))
            assert reply.step_index == self.received

    def _follow(self) -> None:
        """Go on elsewhere: everything that the server had taken was answered before, and the call ends well."""
        assert self._raw.half_close() == []
        self._raw.channel.close()
        self.moves += 1
        self._open(resume=True, received=self.received)
        self._raw.send(*map(step, self._sent[self.received :]))


def go_on(walkers: Sequence[Checker], eventually: Eventually) -> None:
    """Wait until each has some more replies."""
    wanted = {each: each.received + 5 for each in walkers}
    assert eventually(lambda: all(each.checked().received >= wanted[each] for each in walkers))


@contextmanager
def walking(target: Callable[[], str], count: int, *levels: int) -> Iterator[list[Walker]]:
    """So many clients, at these levels in turn, while the block runs; they must not have met an error."""
    walkers = [Walker(target, levels[at % len(levels)], at) for at in range(count)]
    with _stepping(walkers):
        yield walkers


@contextmanager
def python_clients(target: str, count: int, *levels: int) -> Iterator[list[PythonWalker]]:
    """The same with sessions of one Python client."""
    with connect(target) as client:
        walkers = [PythonWalker(client, levels[at % len(levels)], at) for at in range(count)]
        with _stepping(walkers):
            yield walkers


@contextmanager
def _stepping(walkers: Sequence[Checker]) -> Iterator[None]:
    for each in walkers:
        each.start()
    try:
        yield
    finally:
        for each in walkers:
            each.halt.set()
        for each in walkers:
            each.join(60)
    assert [each.fault for each in walkers if each.fault is not None] == []
    assert not any(each.is_alive() for each in walkers)
