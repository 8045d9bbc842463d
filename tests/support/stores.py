"""Stores of sessions in this process, and sessions that are nothing but a number."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

from streamcell.service.errors import ServiceError
from streamcell.service.store.store import Claim, Claimed, Store

TOKEN = hashlib.sha256(b"token").digest()


class Counting:
    """A session whose state is the number of its messages; as `Stored`."""

    def __init__(self, key: bytes, claimed: Claimed) -> None:
        self.key = key
        self.fence = claimed.fence
        self.number = claimed.number
        self.steps = claimed.steps
        self.ended = False
        self.told: list[tuple[int, int]] = []
        self.knows = True  # its client knows how far the store is as soon as the session does
        self.told_alone: list[int] = []
        self.is_lost = threading.Event()
        self._told = threading.Condition()

    def image(self) -> tuple[int, int, bytes] | None:
        return None if self.ended else (self.number, self.steps, b"state %d" % self.number)

    def stored(self, number: int, steps: int) -> bool:
        with self._told:
            self.told.append((number, steps))
            self._told.notify_all()
        return self.knows

    def tell_durable(self) -> None:
        self.told_alone.append(self.told[-1][0])

    def lost(self) -> None:
        self.is_lost.set()

    def wait_stored(self, number: int) -> None:
        """Wait until the store is said to have that many messages."""
        with self._told:
            assert self._told.wait_for(lambda: bool(self.told) and self.told[-1][0] >= number, 60)


class Opened:
    """A started store, and what a test asks of it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def ask(
        self, key: bytes, attempt: int = 1, *, create: bool = False, **more: Any
    ) -> Claimed | ServiceError:
        """The answer to a claim."""
        answers: Queue[Claimed | ServiceError] = Queue()
        asked = {"token_hash": TOKEN, "tenant": "", "model": "m", **more}
        self.store.claim(Claim(session=key, attempt=attempt, may_create=create, **asked), answers.put)
        return answers.get(timeout=60)

    def claim(self, key: bytes, attempt: int = 1, *, create: bool = False, **more: Any) -> Claimed:
        """The same, which succeeds."""
        answer = self.ask(key, attempt, create=create, **more)
        assert isinstance(answer, Claimed), answer
        return answer

    def open(self, key: bytes, attempt: int = 1, *, create: bool = False) -> Counting:
        """A session that was claimed and entered."""
        session = Counting(key, self.claim(key, attempt, create=create))
        self.store.enter(session)
        return session

    def step(self, session: Counting) -> None:
        """Apply a message and wait until it is stored."""
        session.number += 1
        self.store.changed(session, sync=True)
        session.wait_stored(session.number)

    def release(self, session: Counting) -> None:
        """Give it away."""
        done = threading.Event()
        self.store.release(session, done.set)
        assert done.wait(60)


def new_id() -> bytes:
    """A session's id."""
    return os.urandom(16)


@contextmanager
def opened(store: Store) -> Iterator[Opened]:
    """Started while the block runs."""
    store.start()
    try:
        yield Opened(store)
    finally:
        store.stop()
