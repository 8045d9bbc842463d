"""Clients that check each reply while servers are killed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import grpc

from .frontends import Eventually

GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Checker(threading.Thread):
    """A client on a thread of its own, until it is told to halt.

    Attributes:
        target: where it has its server: an address, or what its kind goes by.
        received: its replies, all of them as they must be.
        fault: what was not, if anything.
    """

    def __init__(self, target: Any, seed: int) -> None:
        super().__init__(daemon=True)
        self.target, self.random, self.halt = target, random.Random(seed), threading.Event()
        self.received = 0
        self.fault: Exception | None = None

    def run(self) -> None:
        try:
            self.check()
        except Exception as error:
            self.fault = error

    def checked(self) -> Self:
        """Itself; raises the fault if there is one."""
        if self.fault is not None:
            raise AssertionError(f"{self} met an error") from self.fault
        return self

    def check(self) -> None:
        """Asks and checks until `halt`."""
        raise NotImplementedError


def check_over_kills(
    clients: Sequence[Checker], kill: Callable[[], None], kills: int, eventually: Eventually, replies: int = 1
) -> None:
    """Nothing is wrong for clients while something is killed so often.

    Before each kill, and after the last, all have so many replies more.
    """
    chance = random.Random(1)
    for client in clients:
        client.start()
    for done in range(kills + 1):
        due = [client.received + replies for client in clients]
        assert eventually(
            lambda due=due: all(  # type: ignore[misc]
                client.fault or client.received >= count for client, count in zip(clients, due, strict=True)
            )
        )
        if done < kills:
            time.sleep(chance.random() / 10)
            kill()
    for client in clients:
        client.halt.set()
    for client in clients:
        client.join()
    assert [client.fault for client in clients] == [None] * len(clients)
