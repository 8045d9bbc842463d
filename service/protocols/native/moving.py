"""Moves sessions in a shared store to other replicas: a part of them, or all when the server shuts down.

A session moves by itself (`StoredSession.move_away`). Here is which ones do, in which order and at which pace.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Protocol

import structlog

from streamcell.service.control_errors import StillMoving
from streamcell.service.errors import ServerDraining, retry_after
from streamcell.service.sessions.table import DRAINING, SessionTable
from streamcell.service.threads import started

_log = structlog.get_logger(__name__)

# That have been told to go and are not in the store yet; the others go on here until it is their turn.
_AT_ONCE = 64
_SLOW_S = 0.25
# Between two sessions of a part: those who take them over get 200 a second, together.
_APART_S = 0.005
_LOOK_S = 0.02
# For the store to take what is left when the grace is over.
_LAST_S = 1.0
# In which proxies notice that this server drains.
_NOTICED_S = 0.2
# Until an operator should look again whether a part has gone.
_AGAIN_S = 1.0


def elsewhere() -> ServerDraining:
    """Why no new session opens here. The client tries again, until its proxy sends it to another replica."""
    error = ServerDraining(DRAINING)
    error.more = (retry_after(_NOTICED_S),)
    return error


class Leaving(Protocol):
    """A session that can move."""

    @property
    def leaving(self) -> bool:
        """It has been told to go, and its stream has not ended."""

    def move_away(self, done: Callable[[], None]) -> bool:
        """Answer what it has taken, write it to the store, free it, and tell its client. `done`: the store has it."""

    def let_go(self) -> None:
        """Give it away as it is now; its stream ends with an error."""


class Moving:
    """Which sessions go, one after the other."""

    def __init__(
        self,
        sessions: SessionTable,
        stored: Callable[[object], Leaving | None],
        refuse: Callable[[], None],
        *,
        wait: Callable[[float], object] = time.sleep,
        slow_s: float = _SLOW_S,
    ) -> None:
        """Make it.

        Args:
            sessions: the live ones.
            stored: the listener of a session if it is one that can move.
            refuse: has the server take no new sessions, and returns once proxies know it.
            wait: waits so many seconds.
            slow_s: a message that runs for longer than this holds up no other session.
        """
        self._slow_s = slow_s
        self._sessions = sessions
        self._stored = stored
        self._refuse = refuse
        self._wait = wait
        self._lock = threading.Lock()
        self._left: int | None = None  # sessions that have not been told to go; None: no part goes
        self._everything = False  # whatever goes now, all are to go

    def _idle_first(self) -> list[Leaving]:
        """All that can move, those that are idle longest first."""
        live = sorted((each.session for each in self._sessions.all()), key=lambda each: each.figures()[2])
        return [found for each in live if (found := self._stored(each.listener)) is not None]

    def part(self, fraction: float) -> int:
        """Begin to move this part of the sessions, and return how many they are. With 1 no new ones are taken.

        One part goes at a time; if all are to go, that takes the place of the part that goes.

        Raises:
            StillMoving: a part goes already.
            NoThread: the machine gives no thread to move them with; none goes.
        """
        found = self._idle_first()
        chosen = found[: math.ceil(fraction * len(found))]
        with self._lock:
            left = self._left
            if left is not None and fraction < 1:
                error = StillMoving(
                    f"a part of this server's sessions is moving, {left} of them have yet to go: ask again once they "
                    "have, or for a fraction of 1",
                    left=left,
                )
                error.more = (retry_after(_AGAIN_S),)
                raise error
            if left is None:
                started("moves", self._work, chosen)  # it waits for the lock
                self._left = len(chosen)
            self._everything |= fraction == 1
        _log.info("moving sessions", sessions=len(chosen), of=len(found))
        return len(chosen)

    def _work(self, chosen: list[Leaving]) -> None:
        try:
            while True:
                with self._lock:
                    everything, self._everything = self._everything, False
                if everything:
                    self._refuse()
                    chosen = self._idle_first()
                self._left = len(chosen)
                self._move(takewhile(self._next, chosen), _APART_S)
                with self._lock:
                    if not self._everything:
                        self._left = None  # from here on another part may go
                        return
        except BaseException:
            with self._lock:
                self._left, self._everything = None, False
            raise

    def _next(self, session: Leaving) -> bool:
        """True if the next session of a part goes."""
        self._left = (self._left or 1) - 1
        return not self._everything

    def _move(self, chosen: Iterable[Leaving], apart_s: float = 0.0) -> None:
        room = threading.Semaphore(_AT_ONCE)
        for session in chosen:
            room.acquire(timeout=self._slow_s)
            _guarded(session.move_away, room.release)
            if apart_s:
                self._wait(apart_s)

    def all(self, deadline_s: float) -> None:
        """Move all sessions, and return once their streams have ended; what is left at the deadline is given away.

        `deadline_s` is by `time.monotonic`. New ones must be refused by now.
        """
        going: list[Leaving] = []
        told: set[int] = set()
        while new := [each for each in self._idle_first() if id(each) not in told]:
            told.update(map(id, new))
            going += new
            self._move(new)
        while any(each.leaving for each in going) and time.monotonic() < deadline_s:
            self._wait(_LOOK_S)
        left = [each for each in going if each.leaving]
        for each in left:
            _guarded(each.let_go)
        last_s = time.monotonic() + _LAST_S
        while any(each.leaving for each in left) and time.monotonic() < last_s:
            self._wait(_LOOK_S)
        _log.info("sessions moved", sessions=len(going) - len(left), given_away=len(left))


def _guarded(act: Callable[..., object], *given: object) -> None:
    try:
        act(*given)
    except Exception as error:  # one session's bug must not hold up the others
        _log.error("moving a session failed", exc_info=error)
