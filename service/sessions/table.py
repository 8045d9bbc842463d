"""The table of live sessions: what `ListSessions` shows, `CloseSession` closes and idle time-outs end."""

from __future__ import annotations

import hmac
import math
import secrets
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from streamcell.service.access.grant import Grant
from streamcell.service.errors import (
    ServerDraining,
    ServiceError,
    SessionClosed,
    SessionNotFound,
)
from streamcell.service.logs.audit import Audit
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.transport.calls import Call

from .attention import Attention
from .expiry import expiry, has_expired, members_are_idle
from .ids import hash_token as hash_token
from .ids import not_found as not_found
from .live import Live as Live
from .model import Model
from .opening_order import OpeningOrder
from .session import Session, SessionListener
from .tenant_orders import TenantOrders
from .told import tell

M = TypeVar("M", bound=Model)

_IDS = 256  # drawn at once
DRAINING = "this server is shutting down and takes no new sessions"
_NO_TOKEN = bytes(32)  # no token has this SHA-256


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
        # Where openings and ends are told, if anywhere.
        self.audit: Audit | None = None
        self._live: dict[str, Live[Model]] = {}
        self._opened = 0
        self._ids: list[str] = []  # of sessions to come
        self._order: OpeningOrder[Live[Model]] = OpeningOrder()
        self._orders: dict[str, OpeningOrder[Live[Model]]] = {}  # by the model's name
        self._of_tenants: TenantOrders[Live[Model]] = TenantOrders()
        self._lock = threading.Lock()
        self._draining = False
        # What new sessions get while it drains.
        self.refusal: Callable[[], ServerDraining] = lambda: ServerDraining(DRAINING)

    def open(
        self,
        model: M,
        listener: SessionListener,
        peer: str,
        session_id: str = "",
        token_hash: bytes = b"",
        owner: Grant | None = None,
        by: str = "",
    ) -> Live[M]:
        """Start a session of `owner` on `model`; `session_id` and `token_hash` are those of a resumable one.

        `by`: the subject of who opens it, for the audit log.

        Raises:
            ServerDraining: the server is shutting down.
            SessionLimit: the model has no room for another session.
            SessionNotFound: a session has this id already.
            QuotaExceeded: the owner has as many as it may have.
        """
        if self._draining:
            self.check_not_draining()
        if owner is not None:
            owner.take_sessions(1)
        try:
            session: Session = model.batcher.open(session_id or self._new_id(), listener, peer)
        except ServiceError as error:
            model.metrics.request_failed(error)
            if owner is not None:
                owner.give_sessions(1)
            raise
        session.token_hash = token_hash
        session.owner = owner
        try:
            return self.adopt(session, model, by)
        except SessionNotFound:
            model.batcher.end(session)
            if owner is not None:
                owner.give_sessions(1)
            raise

    def claim(self, session_id: str, token: bytes, tenant: str = "") -> Live[Model]:
        """The live resumable session of that id, for a caller of its tenant with its token.

        Raises:
            SessionNotFound: there is none, or it has another token or tenant. Neither error nor work tells which.
        """
        live = self._owned(self._live.get(session_id), hash_token(token))
        if live is None or live.session.tenant != tenant:
            raise not_found(session_id)
        return live

    @staticmethod
    def _owned(live: Live[Model] | None, given: bytes) -> Live[Model] | None:
        known = b"" if live is None else live.session.token_hash
        return live if hmac.compare_digest(known or _NO_TOKEN, given) else None

    def enter(
        self,
        model: M,
        make: Callable[[str], Session],
        session_id: str = "",
        token_hash: bytes = b"",
        owner: Grant | None = None,
        by: str = "",
    ) -> Live[M]:
        """List the session that `make` makes for an id, as `owner`'s. Its sequences are opened and counted elsewhere.

        `session_id` and `token_hash` are those of a resumable one, `by` is as for `open`.

        Raises:
            ServerDraining: the server is shutting down.
            SessionNotFound: a session has this id already.
        """
        self.check_not_draining()
        session = make(session_id or self._new_id())
        session.token_hash, session.owner = token_hash, owner
        try:
            return self._list(session, model, counted=False, by=by)
        except SessionNotFound:
            model.batcher.end(session)
            raise

    def _new_id(self) -> str:
        """16 hexadecimal digits that nobody can foretell. The operating system is asked for many at once."""
        while True:
            try:
                return self._ids.pop()
            except IndexError:
                digits = secrets.token_hex(8 * _IDS)
                self._ids += [digits[at : at + 16] for at in range(0, 16 * _IDS, 16)]

    def adopt(self, session: Session, model: M, by: str = "") -> Live[M]:
        """List and count a session that was opened elsewhere; `by` is as for `open`."""
        live = self._list(session, model, by=by)
        model.metrics.session_opened()
        return live

    def _list(self, session: Session, model: M, *, counted: bool = True, by: str = "") -> Live[M]:
        with self._lock:
            if session.session_id in self._live:
                raise not_found(session.session_id)
            self._opened += 1
            live = Live(session, model, self._opened, counted=counted)
            self._live[session.session_id] = live
            self._order.add(live.number, live)
            name = model.file.name
            order = self._orders.get(name)
            if order is None:
                order = self._orders[name] = OpeningOrder()
            order.add(live.number, live)
            if session.owner is not None:
                self._of_tenants.add(live)
        if self.audit is not None:
            # Without a client it is one that an earlier process has left.
            tell(self.audit, "opened" if session.peer else "recovered", live, peer=session.peer, by=by)
        return live

    def _tell_end(self, live: Live[Model], reason: str) -> None:
        """Report an end, if somebody listens."""
        if self.audit is not None:
            session = live.session
            age_s = time.monotonic() - session.opened_s
            tell(self.audit, "ended", live, reason=reason, steps=session.figures()[0], seconds=age_s)

    def tell_resumed(self, live: Live[Model], source: str, result: str, call: Call) -> None:
        """Report an opening that resumes a session, as `ModelMetrics.session_resumed` counts it."""
        if self.audit is not None:
            by = call.caller.subject
            tell(self.audit, "resumed", live, source=source, result=result, peer=call.peer, by=by)

    def tell_copied(self, live: Live[Model], kind: str) -> None:
        """Report that a session's state was copied, as `ModelMetrics.state_copied` counts it."""
        if self.audit is not None:
            tell(self.audit, "copied", live, kind=kind, steps=live.session.step_index, peer=live.session.peer)

    def forget(self, live: Live[Model]) -> None:
        """Take a session off the list, whose front end has died."""
        with self._lock:
            self._forget(live)
        self._tell_end(live, "frontend_lost")

    def _forget(self, live: Live[Model]) -> None:
        if self._live.pop(live.session.session_id, None) is None:
            return
        self._order.remove(live.number)
        name = live.model.file.name
        if self._orders[name].remove(live.number):
            del self._orders[name]
        if (owner := live.session.owner) is not None:
            self._of_tenants.remove(live)
            if live.counted:
                owner.give_sessions(1)

    def end(self, live: Live[Model], reason: str) -> bool:
        """End a session for `reason`, a metrics label; False if it had ended already."""
        session, model = live.session, live.model
        ended = model.batcher.end(session)
        if ended:
            with self._lock:
                self._forget(live)
            model.metrics.session_ended(reason, session.members)
            if self.audit is not None:
                self._tell_end(live, reason)
        return ended

    def release(self, live: Live[Model]) -> bool:
        """Like `end`, but the caller counts the reason once it is known."""
        ended = live.model.batcher.end(live.session)
        if ended:
            with self._lock:
                self._forget(live)
            if self.audit is not None:
                self._tell_end(live, live.why or "closed")
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

    def page(
        self, name: str, after: int, most: int, tenant: str | None = None
    ) -> tuple[list[Live[Model]], int, bool]:
        """A page of live sessions in the order of opening; the cost depends on the page's size alone.

        Args:
            name: the model's; empty for the sessions of all.
            after: the place that an earlier call returned; 0 to begin.
            most: how many at most. There may be fewer even if more follow.
            tenant: whose; None: everybody's.

        Returns:
            The sessions, the place of the last one, and whether more follow.
        """
        with self._lock:
            order = self._orders.get(name) if name else self._order
            if tenant is not None:
                order = self._of_tenants.of(tenant, name)
            return ([], after, False) if order is None else order.after(after, most)

    def counts(self, metrics: ModelMetrics) -> dict[str, int]:
        """Live sessions of the model version with these `metrics`, by state.

        They are "open" if no step was applied yet, "detached" if they wait to be resumed.
        """
        counts = {"open": 0, "active": 0, "detached": 0}
        for live in self._named(metrics.labels[0]):
            if live.model.metrics is metrics and live.session.detached_s is not None:
                counts["detached"] += live.session.members
            elif live.model.metrics is metrics:
                fresh = live.session.fresh_count
                counts["open"] += fresh
                counts["active"] += live.session.members - fresh
        return counts

    def by_tenant(self) -> dict[str, int]:
        """How many live sessions each tenant has; a stream of frames counts as one."""
        with self._lock:
            return self._of_tenants.counts()

    def queued(self, metrics: ModelMetrics) -> int:
        """Messages that wait to be run, of sessions of the model version with these `metrics`."""
        name = metrics.labels[0]
        return sum(live.session.queued for live in self._named(name) if live.model.metrics is metrics)

    def close(self, session_id: str, token: bytes = b"", tenant: str | None = None) -> int:
        """End a session of `tenant` (None: anybody's) for another client; its step index. A resumable one has a token.

        The table no longer lists it, even if a front end has not learned of its end yet.

        Raises:
            SessionNotFound: it has ended, never was, or is another tenant's.
        """
        token_hash = hash_token(token)
        live = self._take(session_id, token_hash, tenant)
        if live is None:
            self.catch_up()
            live = self._take(session_id, token_hash, tenant)
        if live is None:
            raise not_found(session_id)
        live.session.listener.fail(
            SessionClosed("the session was closed through CloseSession", session_id=session_id)
        )
        return live.session.figures()[0]

    def _take(self, session_id: str, token_hash: bytes, tenant: str | None) -> Live[Model] | None:
        """Take a session off the list; None if it is not there, or has another token or tenant."""
        with self._lock:
            found = self._live.get(session_id)
            owned = self._owned(found, token_hash)
            live = found if found is not None and not found.session.token_hash else owned
            if live is not None and tenant is not None and live.session.tenant != tenant:
                live = None
            if live is not None:
                self._forget(live)
                live.why = SessionClosed.reason.lower()
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
            has_expired(live.session, idle_s, left_s) or members_are_idle(live.session, idle_s)
            for live in self.all()
        )
        if over and all_read():
            attention.attended()
            self._expire(idle_s, left_s)

    def _expire(self, idle_s: float, left_s: float) -> None:
        for live in self.all():
            session = live.session
            if has_expired(session, idle_s, left_s):
                session.listener.fail(expiry(session, self.idle_timeout_s, self.linger_s))
            elif members_are_idle(session, idle_s):
                session.expire_members(idle_s)

    def drain(self) -> None:
        """From now on take no new sessions."""
        self._draining = True

    def check_not_draining(self) -> None:
        """Raise ServerDraining once `drain` was called."""
        if self._draining:
            raise self.refusal()

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
