"""The table of live sessions: what `ListSessions` shows, `CloseSession` closes and idle time-outs end."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from streamcell.service.errors import (
    ServerDraining,
    ServiceError,
    SessionClosed,
    SessionExpired,
    SessionNotFound,
    shown,
)
from streamcell.service.metrics.model_metrics import ModelMetrics

from .attention import Attention
from .model import Model
from .opening_order import OpeningOrder
from .session import Session, SessionListener

M = TypeVar("M", bound=Model)
M_co = TypeVar("M_co", bound=Model, covariant=True)

_IDS = 256  # drawn at once
_NO_TOKEN = bytes(32)  # no token has this SHA-256


class Live(Generic[M_co]):
    """A session and its model; `number` is its place in the order of opening, from 1 on."""

    __slots__ = ("model", "number", "session")

    def __init__(self, session: Session, model: M_co, number: int) -> None:
        self.session = session
        self.model = model
        self.number = number


class SessionTable:
    """Opens and ends sessions, and keeps them by id in the order they were opened. Thread-safe.

    Attributes:
        idle_timeout_s: how long a session may be idle, in seconds.
        linger_s: how long a resumable session may be without a stream, in seconds.
        catch_up: waits until every session of which a client knows is in the table. Front ends open sessions themselves
            and tell this process of them.
    """

    def __init__(self, *, idle_timeout_s: float, linger_s: float = 0.0) -> None:
        self.idle_timeout_s = idle_timeout_s
        self.linger_s = linger_s
        self.catch_up: Callable[[], object] = lambda: None
        self._live: dict[str, Live[Model]] = {}
        self._opened = 0
        self._ids: list[str] = []  # of sessions to come
        self._order: OpeningOrder[Live[Model]] = OpeningOrder()
        self._orders: dict[str, OpeningOrder[Live[Model]]] = {}  # by the model's name
        self._lock = threading.Lock()
        self._draining = False

    def open(
        self, model: M, listener: SessionListener, peer: str, session_id: str = "", token_hash: bytes = b""
    ) -> Live[M]:
        """Start a session on `model`; `session_id` and `token_hash` are those of a resumable one.

        Raises:
            ServerDraining: the server is shutting down.
            SessionLimit: the model has no room for another session.
            SessionNotFound: a session has this id already.
        """
        if self._draining:
            self.check_not_draining()
        try:
            session: Session = model.batcher.open(session_id or self._new_id(), listener, peer)
        except ServiceError as error:
            model.metrics.request_failed(error)
            raise
        session.token_hash = token_hash
        try:
            return self.adopt(session, model)
        except SessionNotFound:
            model.batcher.end(session)
            raise

    def claim(self, session_id: str, token: bytes) -> Live[Model]:
        """The live resumable session of that id, for whoever has its token.

        Raises:
            SessionNotFound: there is none, or it has another token. Neither error nor work tells which.
        """
        live = self._owned(self._live.get(session_id), hash_token(token))
        if live is None:
            raise not_found(session_id)
        return live

    @staticmethod
    def _owned(live: Live[Model] | None, given: bytes) -> Live[Model] | None:
        known = b"" if live is None else live.session.token_hash
        return live if hmac.compare_digest(known or _NO_TOKEN, given) else None

    def enter(self, model: M, make: Callable[[str], Session]) -> Live[M]:
        """List the session that `make` makes for an id. Its sequences are opened and counted elsewhere.

        Raises:
            ServerDraining: the server is shutting down.
        """
        self.check_not_draining()
        return self._list(make(self._new_id()), model)

    def _new_id(self) -> str:
        """16 hexadecimal digits that nobody can foretell. The operating system is asked for many at once."""
        while True:
            try:
                return self._ids.pop()
            except IndexError:
                digits = secrets.token_hex(8 * _IDS)
                self._ids += [digits[at : at + 16] for at in range(0, 16 * _IDS, 16)]

    def adopt(self, session: Session, model: M) -> Live[M]:
        """List and count a session that was opened elsewhere."""
        live = self._list(session, model)
        model.metrics.session_opened()
        return live

    def _list(self, session: Session, model: M) -> Live[M]:
        with self._lock:
            if session.session_id in self._live:
                raise not_found(session.session_id)
            self._opened += 1
            live = Live(session, model, self._opened)
            self._live[session.session_id] = live
            self._order.add(live.number, live)
            name = model.file.name
            order = self._orders.get(name)
            if order is None:
                order = self._orders[name] = OpeningOrder()
            order.add(live.number, live)
        return live

    def forget(self, live: Live[Model]) -> None:
        """Take a session off the list."""
        with self._lock:
            self._forget(live)

    def _forget(self, live: Live[Model]) -> None:
        if self._live.pop(live.session.session_id, None) is None:
            return
        self._order.remove(live.number)
        name = live.model.file.name
        if self._orders[name].remove(live.number):
            del self._orders[name]

    def end(self, live: Live[Model], reason: str) -> bool:
        """End a session for `reason`, a metrics label; False if it had ended already."""
        session, model = live.session, live.model
        ended = model.batcher.end(session)
        if ended:
            with self._lock:
                self._forget(live)
            model.metrics.session_ended(reason, session.members)
        return ended

    def release(self, live: Live[Model]) -> bool:
        """Like `end`, but the caller counts the reason once it is known."""
        ended = live.model.batcher.end(live.session)
        if ended:
            with self._lock:
                self._forget(live)
        return ended

    def find(self, session_id: str) -> Live[Model]:
        """The live session of that id.

        Raises:
            SessionNotFound: it has ended, or never was.
        """
        live = self._live.get(session_id)
        if live is None:
            raise not_found(session_id)
        return live

    def all(self) -> list[Live[Model]]:
        """Every live session, oldest first."""
        with self._lock:
            return list(self._live.values())

    def on(self, model: Model) -> list[Live[Model]]:
        """The live sessions of `model`, of any kind, oldest first."""
        return [live for live in self._named(model.file.name) if live.model is model]

    def _named(self, name: str) -> list[Live[Model]]:
        with self._lock:
            return list(self._orders.get(name, ()))

    def page(self, name: str, after: int, most: int) -> tuple[list[Live[Model]], int, bool]:
        """A page of live sessions in the order of opening; the cost depends on the page's size alone.

        Args:
            name: the model's; empty for the sessions of all.
            after: the place that an earlier call returned; 0 to begin.
            most: how many at most. There may be fewer even if more follow.

        Returns:
            The sessions, the place of the last one, and whether more follow.
        """
        with self._lock:
            order = self._orders.get(name) if name else self._order
            return ([], after, False) if order is None else order.after(after, most)

    def counts(self, metrics: ModelMetrics) -> dict[str, int]:
        """Live sessions of the model version with these `metrics`, by state.

        They are "open" if no step was applied yet, "detached" if they wait to be resumed.
        """
        counts = {"open": 0, "active": 0, "detached": 0}
        for live in self._named(metrics.labels[0]):
            if live.model.metrics is metrics and live.session.detached_s is not None:
                counts["detached"] += 1
            elif live.model.metrics is metrics:
                fresh = live.session.fresh_count
                counts["open"] += fresh
                counts["active"] += live.session.members - fresh
        return counts

    def queued(self, metrics: ModelMetrics) -> int:
        """Messages that wait to be run, of sessions of the model version with these `metrics`."""
        name = metrics.labels[0]
        return sum(live.session.queued for live in self._named(name) if live.model.metrics is metrics)

    def close(self, session_id: str, token: bytes = b"") -> int:
        """End a session at another client's request and return its step index; a resumable one needs its token.

        The table no longer lists it, even if a front end has not learned of its end yet.

        Raises:
            SessionNotFound: it has ended, or never was.
        """
        token_hash = hash_token(token)
        live = self._take(session_id, token_hash)
        if live is None:
            self.catch_up()
            live = self._take(session_id, token_hash)
        if live is None:
            raise not_found(session_id)
        live.session.listener.fail(
            SessionClosed("the session was closed through CloseSession", session_id=session_id)
        )
        return live.session.figures()[0]

    def _take(self, session_id: str, token_hash: bytes) -> Live[Model] | None:
        """Take a session off the list; None if it is not there, or has another token."""
        with self._lock:
            found = self._live.get(session_id)
            owned = self._owned(found, token_hash)
            live = found if found is not None and not found.session.token_hash else owned
            if live is not None:
                self._forget(live)
            return live

    def expire_idle(self, attention: Attention, all_read: Callable[[], bool] = lambda: True) -> None:
        """End every session that had no message and no work for the idle time-out, or no stream for its linger time.

        A session with members of its own ends its idle members, too.

        Args:
            attention: measures the idle time at its latest pass.
            all_read: waits until all arrived messages are in their sessions' queues. If it returns False, no session
                ends in this pass.
        """
        idle_s = attention.before_s(self.idle_timeout_s) if self.idle_timeout_s else -math.inf
        left_s = attention.before_s(self.linger_s)
        over = any(
            _expired(live.session, idle_s, left_s) or live.session.has_idle_members(idle_s)
            for live in self.all()
        )
        if over and all_read():
            attention.attended()
            self._expire(idle_s, left_s)

    def _expire(self, idle_s: float, left_s: float) -> None:
        for live in self.all():
            session = live.session
            if _expired(session, idle_s, left_s):
                session.listener.fail(self._expiry(session))
            elif session.has_idle_members(idle_s):
                session.expire_members(idle_s)

    def _expiry(self, session: Session) -> SessionExpired:
        what = f"no message for {self.idle_timeout_s:g} s"
        if session.detached_s is not None:
            what = f"its client did not resume it within {self.linger_s:g} s"
        return SessionExpired(
            f"{what}: the session has expired and its state is gone",
            session_id=session.session_id,
            idle_timeout_s=self.idle_timeout_s,
            step_index=session.figures()[0],
        )

    def drain(self) -> None:
        """From now on take no new sessions."""
        self._draining = True

    def check_not_draining(self) -> None:
        """Raise ServerDraining once `drain` was called."""
        if self._draining:
            raise ServerDraining("this server is shutting down and takes no new sessions")

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self._draining

    def fail_all(self, error: Callable[[], ServiceError]) -> None:
        """End every live session with an error."""
        for live in self.all():
            live.session.listener.fail(error())

    @property
    def attached(self) -> int:
        """The number of live sessions, without those that wait to be resumed."""
        return sum(live.session.detached_s is None for live in self.all())

    def __len__(self) -> int:
        return len(self._live)


def hash_token(token: bytes) -> bytes:
    """What the server keeps of a token."""
    return hashlib.sha256(token).digest()


def not_found(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"no live session {shown(session_id)}", session_id=session_id)


def _expired(session: Session, idle_s: float, left_s: float) -> bool:
    """True if the session is detached since before `left_s`, or has a stream and is idle since before `idle_s`."""
    if session.detached_s is not None:
        return session.detached_s < left_s
    return _idle(session, idle_s)


def _idle(session: Session, oldest_s: float) -> bool:
    """True if the session was last used before `oldest_s` and has no work; running work counts as use."""
    # A generation that waits for its client to read has nothing to do.
    if session.in_flight or (session.queued and not session.gate):
        session.touch(time.monotonic())
        return False
    return session.figures()[2] < oldest_s
