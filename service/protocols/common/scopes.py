"""The part of the server that each caller sees: its tenant's models, sessions and limits."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Generic, TypeVar

from streamcell.service.access.access_errors import NotPermitted, QuotaExceeded
from streamcell.service.access.grant import Grant
from streamcell.service.access.identity import ANYONE, Identity
from streamcell.service.access.policy import Kind, Policy, Terms
from streamcell.service.errors import ModelNotFound, ServiceError, addressed, as_status, shown
from streamcell.service.sessions.model import Model
from streamcell.service.transport.calls import Call, OnRequest, OpenStream, StreamHandler, UnaryCall

from .call_context import CallContext, ModelFinder
from .metered import metered, metered_once
from .requests import Limits

M = TypeVar("M", bound=Model)

_NOTHING = Terms(models=frozenset(), calls=frozenset())
_MOST = 4096  # tenants at a time; those of which nothing lives make room for others


class GrantedModels(Generic[M]):
    """The models that a tenant may use (a `ModelFinder`); the others do not exist for it."""

    def __init__(self, models: ModelFinder[M], grant: Grant) -> None:
        self._models = models
        self._grant = grant

    def __iter__(self) -> Iterator[M]:
        return (model for model in self._models if self._grant.sees(model.file.name))

    def find(self, name: str, version: str = "") -> M:
        """As `Models.find`; a model that the tenant may not use does not exist for it."""
        if not self._grant.sees(name):
            names = sorted({model.file.name for model in self})
            raise ModelNotFound(
                f"Request for unknown model: {shown(name)} is not found; this server has: "
                f"{', '.join(names) or 'none'}",
                model=name,
            )
        return self._models.find(name, version)

    def versions(self, name: str) -> Mapping[str, M]:
        """The versions of `name` that are served, the newest last."""
        return self._models.versions(name) if self._grant.sees(name) else {}


class Scopes(Generic[M]):
    """A `CallContext` for each tenant, through which a handler reaches only what is the tenant's. Thread-safe."""

    def __init__(
        self,
        whole: CallContext[M],
        policy: Policy | None = None,
    ) -> None:
        """Make it.

        Args:
            whole: for callers without a tenant, who see everything.
            policy: the tenants' terms; None: a tenant has no limits, but reaches only its own.
        """
        self.whole = whole
        self._policy = policy
        self._scopes: dict[tuple[str, bool], CallContext[M]] = {}
        # A call that holds a grant which has made room counts on: a later call gets the same.
        self._grants: weakref.WeakValueDictionary[tuple[str, bool], Grant] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        if policy is not None:
            policy.on_change = self._apply

    def of(self, caller: Identity) -> CallContext[M]:
        """What `caller` sees.

        Raises:
            QuotaExceeded: too many tenants have something live.
        """
        if caller is ANYONE:
            return self.whole
        key = (caller.tenant, caller.operator)
        return self._scopes.get(key) or self._make(key)

    def may(self, caller: Identity, kind: Kind) -> CallContext[M]:
        """As `of`, for a call of that kind; raises NotPermitted if its tenant may not make any."""
        context = self.of(caller)
        if context.grant is not None:
            context.grant.check(kind)
        return context

    def of_tenant(self, tenant: str) -> CallContext[M]:
        """What callers of a tenant see; `whole` if the name is empty."""
        return self.of(Identity(tenant, "", operator=False)) if tenant else self.whole

    @staticmethod
    def whose(caller: Identity) -> str | None:
        """Whose sessions `caller` may list and close; None: everybody's."""
        return None if caller.operator else caller.tenant

    def _make(self, key: tuple[str, bool]) -> CallContext[M]:
        with self._lock:
            context = self._scopes.get(key)
            if context is None:
                if len(self._scopes) >= _MOST:
                    self._make_room()
                whole, grant = self.whole, self._grant(key)
                models = GrantedModels(whole.models, grant)
                snapshots = None if whole.snapshots is None else whole.snapshots.of_tenant(grant.tenant)
                context = CallContext(
                    models,
                    whole.sessions,
                    whole.metrics,
                    whole.limits,
                    whole.kept,
                    snapshots,
                    grant,
                    whole.replica,
                )
                context.store, context.stored = whole.store, whole.stored
                context.limits = self._limits(grant)
                self._scopes[key] = context
        return context

    def _make_room(self) -> None:
        """Forget the tenants that have no live sessions or calls. With the lock held."""
        self._scopes = {
            key: context
            for key, context in self._scopes.items()
            if context.grant is not None and not context.grant.idle
        }
        if len(self._scopes) >= _MOST:
            raise QuotaExceeded(
                f"{_MOST} tenants have sessions on this server, as many as it may have: try again later",
                quota="tenants",
                limit=_MOST,
            )

    def _grant(self, key: tuple[str, bool]) -> Grant:
        tenant, operator = key
        grant = self._grants.get(key)
        if grant is None:  # the policy is not for operators
            terms = Terms if operator else lambda: self._terms(tenant)
            grant = self._grants[key] = Grant(tenant, terms, operator=operator)
        return grant

    def _terms(self, tenant: str) -> Terms:
        if self._policy is None:
            return Terms()
        try:
            return self._policy.terms(tenant)
        except NotPermitted:  # it was taken out of the file
            return _NOTHING

    def _limits(self, grant: Grant) -> Limits:
        limits, widest = self.whole.limits, grant.terms.max_beam_width
        return (
            limits if widest is None else replace(limits, max_beam_width=min(limits.max_beam_width, widest))
        )

    def _apply(self) -> None:
        """The policy has changed."""
        with self._lock:
            for context in self._scopes.values():
                assert context.grant is not None
                context.limits = self._limits(context.grant)

    # Handlers of methods

    def stream(self, kind: Kind, make: Callable[[Call, CallContext[M]], StreamHandler]) -> OpenStream:
        """A streaming method of that kind: `make` makes a call's handler for what its caller sees."""

        def open_(call: Call) -> StreamHandler:
            try:
                context = self.may(call.caller, kind)
            except ServiceError as error:
                return self.refused(call, error)
            return metered(call, context.grant, lambda call: make(call, context))

        return open_

    def unary(self, kind: Kind, answer: Callable[[UnaryCall, bytes, CallContext[M]], None]) -> OnRequest:
        """A unary method of that kind: `answer` answers a request within what its caller sees."""

        def on_request(call: UnaryCall, data: bytes) -> None:
            try:
                context = self.may(call.caller, kind)
                metered_once(call, data, context.grant, lambda call: answer(call, data, context))
            except ServiceError as error:
                self.refuse(call, error)

        return on_request

    def refused(self, call: Call, error: ServiceError) -> StreamHandler:
        """End a stream that may not begin; returns its handler."""
        self.whole.metrics.error(addressed(error, call))
        call.end(*as_status(error))
        return REFUSED

    def refuse(self, call: UnaryCall, error: ServiceError) -> None:
        """End a unary call that may not begin."""
        self.whole.metrics.error(addressed(error, call))
        call.fail(*as_status(error))


class _Refused:
    """The handler of a call that has been ended before it began."""

    def on_message(self, data: bytes) -> bool:
        """Nobody reads it."""
        return False

    def on_half_close(self) -> None:
        """Nothing is owed."""

    def on_end(self, cancelled: bool) -> None:
        """Nothing to do."""


REFUSED: StreamHandler = _Refused()
