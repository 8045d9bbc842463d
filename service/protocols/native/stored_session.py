"""A resumable session that a shared store has, too: another replica goes on if this one is lost, or gives it away.

At store-async a reply goes out at once, and the store has it some milliseconds later; `durable` says how far. At
store-sync a reply waits until the store has it. Docs: docs/durable-sessions.md, "A shared store".
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from streamcell.proto import pb
from streamcell.service.batching.batcher import Batcher
from streamcell.service.durability.found import Committed
from streamcell.service.durability.journal import Entry
from streamcell.service.errors import (
    ModelUnloaded,
    ModelUnloading,
    ServerDraining,
    ServiceError,
    SessionNotFound,
)
from streamcell.service.generation.work import Generating
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.protobuf import varint
from streamcell.service.sessions.kept_replies import Place
from streamcell.service.sessions.session import Output
from streamcell.service.store.errors import StoreUnavailable
from streamcell.service.store.interface import SharedStore

from .generation_requests import outcome_of
from .leaving import Image, LeavingSession
from .openings import Resume, Stream

PATIENCE_S = 5.0  # that a reply waits for the store

_DURABLE_TAG = b"\x40"  # StreamResponse.durable: 8, varint


class StoredSession(LeavingSession):
    """A session in a shared store: its listener, and what the store asks of it."""

    def __init__(
        self,
        context: CallContext[Any],
        window: int,
        output: Output,
        store: SharedStore,
        session_id: str,
        level: pb.Durability,
        encode: Callable[[Committed, bytes], bytes],
    ) -> None:
        """Make it.

        Args:
            context: its calls'.
            window: the most messages without a reply.
            output: as `KeptSession.output`.
            store: where it is kept.
            session_id: its id, in hexadecimal.
            level: DURABILITY_STORE_ASYNC or DURABILITY_STORE_SYNC.
            encode: makes the bytes of its image, of what was committed and the rest of a generation's request.
        """
        super().__init__(context, window, output, store, session_id)
        self.place.level = level
        self._sync = level == pb.DURABILITY_STORE_SYNC
        self._encode = encode
        self._given: Image | None = None  # what the store has, until the engine thread has given it its state
        self._expected: Generating | None = None  # its generation, until that is queued
        self._durable: Place = (0, 0)  # what the store has
        self._durable_told = 0
        self._noted = False  # the store knows that it has changed since its last image
        # Replies to its stream that wait for the store: since when, the place of a client that has one, and it.
        self._held: deque[tuple[float, Place, bytes, bool]] = deque()
        self._settled_s = 0.0  # when its opening began to wait for the store alone

    # How it begins

    def claimed(self, fence: int, image: Image) -> None:
        """It is this replica's under that fence, and the store has `image`. Call before others can find it."""
        self.fence = fence
        self._given = image
        self._durable = image[:2]

    def claimed_as_it_is(self, fence: int) -> None:
        """It is this replica's under that fence, and the store has it as it was when it was made."""
        self.fence = fence

    def expects(self, work: Generating, told: int) -> None:
        """It has a generation which has told so many timesteps, and which `goes_on_with` lets wait for a client."""
        self._accepted += 1
        self._steps = told
        self._generations.append(work)
        self._expected = work

    def goes_on_with(self, work: Generating) -> None:
        """Queue that generation. On the engine thread, which has given the session its state."""
        session = self.live.session
        batcher: Batcher = self.live.model.batcher
        session.gates = gate = session.gates + 1

        def put_first() -> None:
            self._expected = None
            session.queue.appendleft(work)
            session.gate = gate

        if batcher.change(session, put_first):
            self._wake = lambda: batcher.release(session, gate)

    def sent_again(self, stream: Stream, request: pb.StreamRequest) -> None:
        """Let the generation go on that has waited for its message, as its client was told of it.

        Raises:
            BadGeneration: that cannot have been.
        """
        with self._lock:
            work = self._generations[0] if self._generations and stream.next == self.applied + 1 else None
        if not isinstance(work, Generating):
            return
        file = self.live.model.file
        if request.HasField("outcome"):
            told, recipe = request.outcome, work.recipe
            work.repeat(outcome_of(told, work.wanted, recipe, file.signature, file.generation))
        wake = None
        with self._lock:
            self.awaits_message = False
            if self._opening is None:
                wake = self._may_wake()
        if wake is not None:
            wake()

    def settled(self) -> None:
        """Its first state is there: from now on the store has what it says."""
        with self._lock:
            self._given = None
        super().settled()

    # What the store asks

    def image(self) -> Image | None:
        """Messages applied, timesteps told of a generation, and the bytes of it all; None: it has ended."""
        with self._lock:
            self._noted = False  # what changes from now on is not in it
            if self._over:
                return self._final
            return self._image()

    def _image(self) -> Image | None:
        entry = self.place.entry
        if self._given is not None or not isinstance(entry, Entry):
            return self._given
        work = self._generations[0] if self._generations else None
        rest = work.outcome_left if isinstance(work, Generating) else b""
        return self.applied, self._steps, self._encode(entry.committed(), rest)

    def stored(self, number: int, steps: int) -> bool:
        """The store has it up to here. How far that is rides on what has waited for it, or on the next reply."""
        with self._lock:
            if (number, steps) > self._durable:
                self._durable = number, steps
            waits = bool(self._waits) or self._opening is not None
        if waits:
            self.tell_stored()
        return self._durable[0] <= self._durable_told or self._stream is None

    def tell_durable(self) -> None:
        """Tell its client alone how far the store is, if no reply has done so or is due: it may wait for that."""
        if self._durable[0] > self._durable_told:
            self.tell_stored(alone=True)

    def tell_stored(self, *, alone: bool = False) -> None:
        """Send what has waited for the store; `alone`: or else how far it is."""
        with self._lock:
            stream = self._stream
            if stream is None or (self._call is None and self._unsent is None):
                stream = None
            told = [] if stream is None else self._tellable(alone)
            sends = bool(told) and self._unsent is None
            if told and self._unsent is not None:
                self._unsent.extend(told)
            elif told:
                self._unsent, self._call = deque(told), None
        if sends and stream is not None:
            self._send_unsent(stream)
        if self._opening is not None:
            self._answer_opening()

    def _tellable(self, alone: bool) -> list[tuple[bytes, bool]]:
        told: list[tuple[bytes, bool]] = []
        free = not self._sync and self._store.may_tell()
        while self._waits and (free or self._held[0][1] <= self._durable):
            _, _, data, last = self._held.popleft()
            self._waits -= 1
            told.append((data, last))
        if told:
            data, last = told[-1]
            told[-1] = (self._with_durable(data), last)
        elif alone and self._durable[0] > self._durable_told and not (self._reply_is_due or self._over):
            told.append((self._with_durable(b""), False))
        return told

    @property
    def _reply_is_due(self) -> bool:
        return bool(self._waits) or (self.applied < self._accepted and not self.live.session.gate)

    def _with_durable(self, data: bytes) -> bytes:
        """A reply with how far the store is, if that has grown."""
        durable = self._durable[0]
        if durable <= self._durable_told:
            return data
        self._durable_told = durable
        return data + _DURABLE_TAG + varint(durable)

    def lost(self) -> None:
        """Another replica has it, or may have it."""
        self._keeps = True
        self.fail(self._moved_on())
        self._tell_left()

    # What a client is told

    def _hold_or_tell(self, data: bytes, last: bool) -> bytes | None:
        if self._call is None and self._unsent is None:  # nobody is told
            return data
        free = not self._sync and self._store.may_tell()
        place = self.applied, self._steps
        if not self._waits and (free or place <= self._durable):
            return data if self._durable[0] <= self._durable_told else self._with_durable(data)
        if not self._waits:
            self._held.clear()  # of an earlier stream
            self.waits_for_store(self)
        self._held.append((time.monotonic(), place, data, last))
        self._waits += 1
        return None

    def _may_answer(self) -> bool:
        if not self._sync or (self.applied, self._steps) <= self._durable:
            return True
        if not self._settled_s:
            self._settled_s = time.monotonic()
            self.waits_for_store(self)
        return False

    def _greeting(self) -> bytes:
        self._settled_s = 0.0
        self._durable_told = self._durable[0]
        more = pb.StreamResponse(opened=pb.SessionOpened(durable=self._durable_told))
        return super()._greeting() + more.SerializeToString()

    def attach(self, stream: Stream, opening: Resume) -> None:
        """As for every session.

        Raises:
            SessionMoved: it is no longer this replica's.
        """
        self._settled_s = 0.0
        try:
            super().attach(stream, opening)
        except SessionNotFound:
            if self._keeps:
                raise self._moved_on() from None
            raise

    def waits_since(self) -> float | None:
        """Since when its client waits for the store; None: it does not."""
        with self._lock:
            if self._waits:
                return self._held[0][0]
            waits_s = self._moved_s or self._settled_s
            return waits_s if waits_s and self._stream is not None else None

    def give_up_waiting(self) -> None:
        """The store does not answer: end the stream, and keep the session for its client."""
        with self._lock:
            stream, self._stream = self._stream, None
            self._opening = self._unsent = self._call = None
            self._waits, self._settled_s = 0, 0.0
            if not self._over:
                self.live.session.detached_s = time.monotonic()
        if stream is not None and self._moved:
            self._end_stream(stream, self._moved_on())
        elif stream is not None:
            self._end_stream(
                stream,
                StoreUnavailable(
                    f"the store has not answered for {PATIENCE_S:g} s; the session is kept: resume it in a moment",
                    session_id=self.key.hex(),
                ),
            )

    def _committed(self) -> None:
        sync = bool(self._waits) or self._sync
        if sync or not self._noted:
            self._noted = True  # first: the writer may copy it at once
            self._store.changed(self, sync=sync)
        if self._leaving:
            self._leave_if_asked()

    # How it ends

    def _free(self, reason: str) -> None:
        super()._free(reason)
        if self._expected is not None:  # it was never queued, so nothing else gives its room back
            self._expected.drop(self.live.model.batcher.capacity)

    def fail(self, error: ServiceError) -> None:
        """End it, and its stream; if the server or the model goes, and not the session, another replica may have it."""
        if isinstance(error, (ServerDraining, ModelUnloading, ModelUnloaded)):
            self._quit(error)
        else:
            super().fail(error)
