"""A session in a shared store leaves for another replica: what it has taken is answered, and `moved` comes last."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from streamcell.proto import pb
from streamcell.service.errors import ServiceError
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.sessions.session import Output
from streamcell.service.store.errors import SessionMoved
from streamcell.service.store.interface import SharedStore

from .openings import Resume, Stream
from .resumable import Resumable

# A session's image: messages applied, timesteps told of a generation, and its bytes.
Image = tuple[int, int, bytes]


class LeavingSession(Resumable):
    """The part of a `StoredSession` that lets it go.

    Attributes:
        key: its id, 16 bytes.
        fence: of the claim that it lives by; 0: it is not claimed yet.
        waits_for_store: called when its client begins to wait for the store, or is to go elsewhere.
    """

    def __init__(
        self, context: CallContext[Any], window: int, output: Output, store: SharedStore, session_id: str
    ) -> None:
        super().__init__(context, window, output)
        self.in_store = True
        self.key = bytes.fromhex(session_id)
        self.fence = 0
        self.waits_for_store: Callable[[Any], None] = lambda session: None
        self._store = store
        self._final: Image | None = None  # what is to be left in the store, until it has left
        self._left: list[Callable[[], None]] = []  # called when it has left
        self._moved_s = 0.0  # when it began to leave, or its stream was told to go elsewhere
        self._last_waits = False  # `moved`, for a reply that is on its way
        # What its stream is told when it has left; None: that it moves.
        self._quits: ServiceError | None = None
        self._keeps = False  # its end leaves the store as it is

    def image(self) -> Image | None:
        """As `Stored.image`."""
        raise NotImplementedError

    def _image(self) -> Image | None:
        """The same, under its lock, while it lives."""
        raise NotImplementedError

    def stored(self, number: int, steps: int) -> bool:
        """As `Stored.stored`."""
        raise NotImplementedError

    def tell_durable(self) -> None:
        """As `Stored.tell_durable`."""
        raise NotImplementedError

    def lost(self) -> None:
        """As `Stored.lost`."""
        raise NotImplementedError

    def _free(self, reason: str) -> None:
        super()._free(reason)
        if not self._keeps:
            self._store.delete(self)
            self._tell_left()

    def enter_store(self) -> None:
        """Have the store write it from now on. If it has ended since its claim, the store is told only now."""
        self._store.enter(self)
        with self._lock:
            deletes = self._over and not self._keeps
        if deletes:
            self._store.delete(self)

    def withdraw(self) -> None:
        """End it without a word to the store, which has none of it, or another of its name."""
        self._keeps = True
        self._end("closed")
        self._tell_left()

    @property
    def _at_rest(self) -> bool:
        """True if nothing is to come that its client would have to wait for long to get elsewhere."""
        asked = self._window - self._room
        return not asked and self._accepted - self.applied <= len(self._generations)

    def move_away(self, done: Callable[[], None], *, at_once: bool = False) -> bool:
        """Give it to whichever replica asks for it next, and tell its client.

        It takes no more messages. Once those that it has are answered, or at once, it is written to the store and
        freed. Its stream then gets `moved`, and ends when its client half-closes it. A generation goes on elsewhere at
        its step.

        Args:
            done: called once the store has it, from any thread; also if it has ended otherwise.
            at_once: what is not answered is sent again by its client.

        Returns:
            True: it is one that can move.
        """
        with self._lock:
            gone = self._over and self._final is None
            if not gone:
                self._left.append(done)
                self._leaving = True
            now = not self._over and (at_once or self._at_rest)
        if gone:
            done()
        elif now:
            self._leave()
        return True

    @property
    def leaving(self) -> bool:
        """True once it was told to go, until the store has it and its client has half-closed its stream."""
        with self._lock:
            waits = self._moved and self._stream is not None
            return self._leaving and (not self._over or self._final is not None or waits)

    def let_go(self) -> None:
        """Give it away as it is now, and end its stream with SESSION_MOVED."""
        self._quit(self._moved_on())

    def _quit(self, error: ServiceError) -> None:
        self._quits = error
        self._leave()

    def _leave(self) -> None:
        """Stop here, with what was committed last: its client sends again what is not answered."""
        with self._lock:
            if self._over:
                return
            self._final = self._image()
            self._over = self._leaving = self._keeps = True
            self._moved_s = time.monotonic()
            if self._stream is not None:
                self.waits_for_store(self)
        self._free("moved" if self._quits is None else self._quits.reason.lower())
        if self.fence:
            self._store.release(self, self._has_left)
        else:
            self._has_left()

    def _has_left(self) -> None:
        """The store has it, and it is not this replica's any more."""
        moved = pb.StreamResponse(moved=pb.Moved()).SerializeToString()
        with self._lock:
            stream, error, opening = self._stream, self._quits, self._opening
            self._final = None
            sends = error is None and opening is None
            if error is None and opening is not None:
                error = self._moved_on()
            self._moved = sends
            self._moved_s = time.monotonic()
            if sends and self._sending and self._unsent is None:
                self._unsent, self._call, self._last_waits = deque(), None, True
            behind = self._unsent if sends else None
            if behind is not None:
                behind.append((moved, True))
        self._tell_left()
        if stream is None:
            return
        if error is not None:
            self._end_stream(stream, error)
            return
        self.waits_for_store(self)
        if behind is None:
            stream.call.reply(moved)
            self.finish_if_done(stream)

    def _tell_left(self) -> None:
        with self._lock:
            left, self._left = self._left, []
        for each in left:
            each()

    def attach(self, stream: Stream, opening: Resume) -> None:
        """As for every session."""
        super().attach(stream, opening)
        self._leave_if_asked()  # it may have waited for what the old stream has sent, and that is dropped

    def answer(self, stream: Stream, data: bytes) -> None:
        """As for every session."""
        super().answer(stream, data)
        self._leave_if_asked()

    def _leave_if_asked(self) -> None:
        if self._leaving and self._at_rest:
            self._leave()

    def _sent(self) -> None:
        with self._lock:
            self._sending -= 1
            stream = self._stream if self._last_waits and not self._sending else None
            self._last_waits = self._last_waits and stream is None
        if stream is not None:
            self._send_unsent(stream)

    def _moved_on(self) -> SessionMoved:
        return SessionMoved(
            "the session goes on with another replica: resume it through the proxy", session_id=self.key.hex()
        )
