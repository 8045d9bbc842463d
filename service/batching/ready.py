"""What is ready to run: sessions, streams of frames, and sessions of front ends, which take turns."""

from __future__ import annotations

from typing import Protocol

from streamcell.service.frames.members import Members
from streamcell.service.frames.turns import FrameTurns, Turn
from streamcell.service.processes.engine.ring_batch import RingBatch
from streamcell.service.sessions.session import Session

from .batch import Batch, BatchQueue


class Rings(Protocol):
    """Sessions whose messages come through shared memory: see `processes/engine/ring_sessions.py`. For the
    engine's thread."""

    def drain(self) -> None:
        """Take in what has come."""

    def form(self) -> RingBatch | None:
        """What runs next of it; None for nothing."""


class Ready:
    """Whose turn it is. The batcher's lock guards it; `rings` are set before the engine's thread begins."""

    def __init__(self, *, max_batch: int, max_chunk: int, ragged: bool, coalesce: bool) -> None:
        """The arguments are the batcher's."""
        self._batches = BatchQueue(max_batch=max_batch, max_chunk=max_chunk, ragged=ragged, coalesce=coalesce)
        self._turns = FrameTurns(max_batch)
        self._frames_next = False
        self._rings_next = False
        self.rings: Rings | None = None

    def add(self, session: Session) -> None:
        """A session, or a stream of frames, has work and none in the engine."""
        if isinstance(session, Members):
            self._turns.ready.append(session)
        else:
            self._batches.ready.append(session)

    @property
    def sessions(self) -> bool:
        """Whether sessions are ready."""
        return bool(self._batches.ready)

    @property
    def any_here(self) -> bool:
        """Whether sessions or streams of frames are ready."""
        return bool(self._batches.ready or self._turns.ready)

    @property
    def unary_rows(self) -> int:
        """Rows of unary calls among the sessions."""
        return sum(not session.session_id for session in self._batches.ready)

    def form_sessions(self) -> Batch | None:
        """A batch of sessions, whoever's turn it is."""
        return self._batches.form()

    def form(self) -> Batch | Turn | RingBatch | None:
        """What runs next; None for nothing. None of the three kinds starves another."""
        if self.rings is None:
            return self._form_here()
        self._rings_next = not self._rings_next
        if self._rings_next:
            return self.rings.form() or self._form_here()
        return self._form_here() or self.rings.form()

    def _form_here(self) -> Batch | Turn | None:
        turn = self._turns.form() if self._frames_next else None
        if turn is None:
            batch = self._batches.form()
            if batch is not None:
                self._frames_next = True
                return batch
            turn = self._turns.form()
        self._frames_next = False
        return turn
