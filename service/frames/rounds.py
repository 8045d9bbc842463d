"""Decides whose frames run next: streams take turns, and small frames of several streams share a run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from streamcell.service.batching.batcher import Batcher
from streamcell.service.sessions.capacity import Capacity
from streamcell.service.sessions.session import Session

from .members import FrameListener, FrameSessions


@dataclass(slots=True)
class FrameRound:
    """The streams of one run, a slice each: together at most the rows of a run, unless one stream alone has more."""

    sessions: list[FrameSessions]
    taken_s: float = field(default_factory=time.perf_counter)


class FrameRounds:
    """The `Source` of rounds: streams of frames with work and none in the engine. The batcher's lock guards it."""

    def __init__(self, max_batch: int) -> None:
        """`max_batch` is the most rows of a run."""
        self.ready: deque[FrameSessions] = deque()
        self._max_batch = max_batch

    def open(self, batcher: Batcher, session_id: str, listener: FrameListener, peer: str) -> FrameSessions:
        """Start a stream of frames; it has no members yet.

        `batcher` is an argument, not an attribute: the batcher holds this source, and a cycle would keep the
        model alive.

        Raises:
            ModelUnloading: the model is being unloaded.
            ServerDraining: the engine has been stopped.
        """

        def make(now_s: float) -> FrameSessions:
            members = FrameSessions(session_id, listener, now_s, peer, batcher.schedule)
            members.source = self
            return members

        return batcher.admit(make)

    def gather(self) -> None:
        """Do nothing: the streams are added by the threads that read frames."""

    def add(self, session: Session) -> None:
        """Queue a stream that has a frame or idle members to check, and no frame in the engine."""
        assert isinstance(session, FrameSessions)
        self.ready.append(session)

    @property
    def any(self) -> bool:
        """True if a stream is ready."""
        return bool(self.ready)

    def form(self) -> FrameRound | None:
        """The first ready stream, and the next ones as long as their rows fit in one run; takes a frame of each."""
        taken: list[FrameSessions] = []
        rows = 0
        while self.ready:
            members = self.ready[0]
            if not members.ended:
                frame = members.current or (members.queue[0] if members.queue else None)
                rows += 0 if frame is None else frame.next_rows(self._max_batch)
                if taken and rows > self._max_batch:
                    break
                members.in_flight = True
                members.current = frame
                if frame is not None and members.queue and members.queue[0] is frame:
                    members.queue.popleft()
                taken.append(members)
            members.ready = False
            self.ready.popleft()
        return FrameRound(taken) if taken else None


def complete_round(round_: FrameRound, capacity: Capacity, make_ready: Callable[[Session], None]) -> None:
    """Free the slots of streams that have ended; make those with more to do ready."""
    for members in round_.sessions:
        members.in_flight = False
        if members.ended:
            members.free(capacity)
        elif members.busy:
            make_ready(members)
