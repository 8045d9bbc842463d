"""Keeps the requests of tenants, or of connections, apart: each has its own sequence 42."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamcell.service.access.identity import ANYONE, Identity
from streamcell.service.durability.found import Found
from streamcell.service.errors import SequenceNotStarted
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.scopes import Scopes

from .infer import Infer
from .numbers import owner_of

_IDLE_KEPT = 256  # of callers without a live sequence


class ScopedInfer:
    """An `Infer` for all callers without a tenant, and one for each tenant or each connection. Thread-safe."""

    def __init__(
        self,
        scopes: Scopes[LoadedModel],
        make: Callable[[CallContext[LoadedModel]], Infer],
        *,
        by_connection: bool = False,
    ) -> None:
        """Make it.

        Args:
            scopes: what each caller sees.
            make: makes an `Infer` for that.
            by_connection: whether a sequence belongs to the connection that it came from, too.
        """
        self.scopes = scopes
        self.whole = make(scopes.whole)
        self._make = make
        self._by_connection = by_connection
        self._known: dict[tuple[str, bool, str], Infer] = {}
        self._lock = threading.Lock()

    def of(self, caller: Identity, peer: str) -> Infer:
        """The one of a caller who calls from `peer`; raises NotPermitted as `Scopes.of`."""
        if caller is ANYONE and not self._by_connection:
            return self.whole
        key = (caller.tenant, caller.operator, peer if self._by_connection else "")
        return self._known.get(key) or self._add(key, self.scopes.of(caller))

    def recover(self, found: Found, model: LoadedModel) -> int:
        """Bring back a sequence that an earlier process has left, as its owner's; its slot.

        Raises:
            SequenceNotStarted: nobody can reach it: it was its connection's own.
            NotPermitted: as `Scopes.of`.
            DecodeError, SessionNotFound, …: as `Sequences.recover`.
        """
        if self._by_connection:
            raise SequenceNotStarted("sequences are their connections' own, and its has ended")
        return self.of(owner_of(found), "").sequences.recover(found, model)

    def all(self) -> list[Infer]:
        """Every one."""
        with self._lock:
            return [self.whole, *self._known.values()]

    def _add(self, key: tuple[str, bool, str], context: CallContext[LoadedModel]) -> Infer:
        with self._lock:
            if len(self._known) >= 2 * _IDLE_KEPT:
                busy = {each: infer for each, infer in self._known.items() if len(infer.sequences)}
                idle = [each for each in self._known.items() if each[0] not in busy]
                self._known = busy | dict(idle[-_IDLE_KEPT:])
            infer = self._known.setdefault(key, self._make(context))
            infer.sequences.last = not self._by_connection
            for each in self._known.values():
                each.share(len(self._known))
        return infer
