"""Deletes records whose owners are gone and whose clients have not come back, whichever replica they were on."""

from __future__ import annotations

import random
from collections.abc import Callable

import structlog

from . import functions
from .connection import Connection

_log = structlog.get_logger(__name__)

_TOGETHER = 256
_LOOKS = 4  # at the records in the time that they are kept
_STEP_S = 0.01


class Sweeper:
    """Looks at all records, some at a time, taking turns with the other replicas."""

    def __init__(self, linger_s: float, boot: Callable[[], str], not_here: Callable[[bytes], None]) -> None:
        """Make it.

        Args:
            linger_s: how long a record without an owner is kept.
            boot: this replica's boot id.
            not_here: called with the id of each session that the store says is this replica's.
        """
        self._linger_s = linger_s
        self._boot = boot
        self._not_here = not_here
        self._cursor: bytes | None = None  # None: between two looks

    def step(self, connection: Connection) -> float:
        """Look at some records; returns the seconds until the next step.

        Raises:
            StoreFailure: the store has not answered.
        """
        every_s = max(1.0, self._linger_s / _LOOKS)
        if self._cursor is None:
            turn = connection.call(
                b"SET", functions.SWEEP, self._boot().encode(), b"NX", b"PX", b"%d" % int(every_s * 1000)
            )
            if turn is None:  # another replica's
                return every_s * random.uniform(0.5, 1.0)
            self._cursor = b"0"
        cursor = self._cursor
        self._cursor = None  # if this fails, the next step begins a new look
        cursor, keys = connection.call(
            b"SCAN", cursor, b"MATCH", functions.RECORDS, b"COUNT", b"%d" % _TOGETHER, b"TYPE", b"hash"
        )
        if keys:
            self._sweep(connection, keys)
        if cursor == b"0":
            return every_s * random.uniform(0.5, 1.0)
        self._cursor = cursor
        return _STEP_S

    def _sweep(self, connection: Connection, keys: list[bytes]) -> None:
        arguments = [self._boot().encode(), b"%d" % int(self._linger_s * 1000)]
        letters = connection.ask(functions.call("sweep", keys, arguments))
        if deleted := letters.count(b"d"):
            _log.info("deleted sessions whose clients have not come back", sessions=deleted)
        for key, letter in zip(keys, letters, strict=False):
            if letter == ord("m"):
                try:
                    session = bytes.fromhex(key.rpartition(b":")[2].decode("ascii"))
                except ValueError:
                    continue
                self._not_here(session)
