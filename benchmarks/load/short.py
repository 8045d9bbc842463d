"""Short sessions: each client opens one, sends it a few messages, ends it, and opens the next.

`Stream` and `UnaryCaller` of `streams.py`, as far as the load is concerned.
"""

from __future__ import annotations

import time
from typing import Any

from grpc._cython import cygrpc

from .dialects import Dialect
from .streams import Connection, PingPong, Run, Stream, UnaryCaller, ignore


def short_sessions(
    run: Run, connection: Connection, speech: Dialect, number: int, messages: int
) -> Stream | UnaryCaller:
    """A client whose sessions take `messages` messages each."""
    if speech.nth is None:
        raise ValueError("this dialect has no sessions of a given number of messages")
    kind: Any = _Calls if speech.unary else _Streams if speech.last is None else _Sequences
    made: Stream | UnaryCaller = kind(run, connection, speech, number, messages)
    return made


class _Streams(PingPong):
    """A stream a session."""

    def __init__(self, run: Run, connection: Connection, speech: Dialect, number: int, messages: int) -> None:
        self._method = speech.method
        self._messages = messages
        first, then = speech.first(number), speech.then(number)
        self._first = first
        super().__init__(run, connection, speech.method, first, then, 1)

    def _on_first(self, event: Any) -> None:
        if self.sent % self._messages == 0 or not self._run.going:
            if self._answered(event.batch_operations[-1].message()):
                operations = (cygrpc.SendCloseFromClientOperation(0),)
                self._connection.operate(self._call, operations, ignore)
            return
        super()._on_first(event)

    def _on_status(self, event: Any) -> None:
        if event.batch_operations[0].code() != cygrpc.StatusCode.ok or not self._run.going:
            super()._on_status(event)
            return
        self.sent += 1
        self._began_s.append(time.perf_counter())
        self._begin(self._method, self._first)

    def end(self, last: bytes | None = None) -> None:
        """Nothing: its last session ends by itself."""


class _Sequences(PingPong):
    """One stream of sequences."""

    def __init__(self, run: Run, connection: Connection, speech: Dialect, number: int, messages: int) -> None:
        assert speech.nth is not None
        self._nth = speech.nth
        self._number, self._messages = number, messages
        first = speech.nth(number, 0, messages)
        super().__init__(run, connection, speech.method, first, b"", 1)

    def _next(self) -> bytes:
        return self._nth(self._number, self.sent - 1, self._messages)

    def end(self, last: bytes | None = None) -> None:
        """Half-close. A sequence that has not ended is left to its idle time-out."""
        super().end(None)


class _Calls(UnaryCaller):
    """Sequences of unary calls."""

    def __init__(self, run: Run, connection: Connection, speech: Dialect, number: int, messages: int) -> None:
        assert speech.nth is not None
        self._nth = speech.nth
        self._number, self._messages = number, messages
        super().__init__(run, connection, speech.method, b"")

    def _next(self) -> bytes:
        return self._nth(self._number, self.sent - 1, self._messages)
