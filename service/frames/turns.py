"""Whose frames run next: streams take turns, small frames of several streams share one."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from .members import Members


@dataclass(slots=True)
class Turn:
    """Streams of which the engine runs a piece each; together at most a run's rows, or one stream alone."""

    sessions: list[Members]
    taken_s: float = field(default_factory=time.perf_counter)


class FrameTurns:
    """The streams of frames that have work and none in the engine, in order. The batcher's lock guards it."""

    def __init__(self, max_batch: int) -> None:
        """`max_batch` is the most rows of a run."""
        self.ready: deque[Members] = deque()
        self._max_batch = max_batch

    def form(self) -> Turn | None:
        """The first ready stream, and those behind it while their rows fit in one run; each with its frame taken."""
        taken: list[Members] = []
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
        return Turn(taken) if taken else None
