"""Lets kinds of work take turns on one engine thread; `Source` and `Job` are what the batcher knows of a kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from streamcell.service.sessions.session import Session


class Job(Protocol):
    """Work that the engine thread does as one unit."""

    @property
    def sessions(self) -> Iterable[Session]:
        """The sessions whose queues it was taken from."""


class Source(Protocol):
    """One kind of work and its ready sessions. The batcher's lock is held for all methods but `gather`."""

    def gather(self) -> None:
        """Take in work that arrived without `submit`. The engine thread calls it without the lock."""

    def add(self, session: Session) -> None:
        """Queue a session of this source that has work and none in the engine."""

    @property
    def any(self) -> bool:
        """True if a session is known to be ready; `gather` may find more."""

    def form(self) -> Job | None:
        """Take what runs next; None if nothing is ready."""


class TurnTaking:
    """Serves the sources round robin, so none starves another."""

    def __init__(self, first: Source) -> None:
        self._sources = [first]
        self._next = 0

    def add(self, source: Source) -> None:
        """Give another source a turn in each round."""
        self._sources.append(source)

    def gather(self) -> None:
        """Call `gather` of every source."""
        for source in self._sources:
            source.gather()

    @property
    def any(self) -> bool:
        """True if something is ready."""
        return True in [source.any for source in self._sources]

    def form(self) -> Job | None:
        """Take the next job, from the first source in the round that has one; None if nothing is ready."""
        for _ in self._sources:
            source = self._sources[self._next]
            self._next = (self._next + 1) % len(self._sources)
            if (job := source.form()) is not None:
                return job
        return None
