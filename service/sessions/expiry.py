"""Finds sessions that were detached or idle for too long."""

from __future__ import annotations

import time

from streamcell.service.errors import SessionExpired

from .session import Session


def has_expired(session: Session, idle_s: float, left_s: float) -> bool:
    """True if the session is detached since before `left_s`, or has a stream and is idle since before `idle_s`."""
    if session.detached_s is not None:
        return session.detached_s < left_s
    return _idle(session, idle_s)


def members_are_idle(session: Session, idle_s: float) -> bool:
    """True if it has a stream, and members that seem idle since before that time."""
    return session.detached_s is None and session.has_idle_members(idle_s)


def expiry(session: Session, idle_timeout_s: float, linger_s: float) -> SessionExpired:
    """The error with which an expired session ends."""
    what = f"no message for {idle_timeout_s:g} s"
    if session.detached_s is not None:
        what = f"its client did not resume it within {linger_s:g} s"
    return SessionExpired(
        f"{what}: the session has expired and its state is gone",
        session_id=session.session_id,
        idle_timeout_s=idle_timeout_s,
        step_index=session.figures()[0],
    )


def _idle(session: Session, oldest_s: float) -> bool:
    """True if the session was last used before `oldest_s` and has no work; running work counts as use."""
    # A generation that waits for its client to read has nothing to do.
    if session.in_flight or (session.queued and not session.gate):
        session.touch(time.monotonic())
        return False
    return session.figures()[2] < oldest_s
