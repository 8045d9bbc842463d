"""The objects that calls of both protocols need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from streamcell.service.access.grant import Grant
from streamcell.service.errors import ServiceError
from streamcell.service.sessions.kept_replies import KeptRoom
from streamcell.service.sessions.model import Model
from streamcell.service.sessions.replica import Replica
from streamcell.service.sessions.table import SessionTable

from .requests import Limits

M_co = TypeVar("M_co", bound=Model, covariant=True)


class ModelFinder(Protocol[M_co]):
    """The models that are served; see `lifecycle.table.Models`."""

    def __iter__(self) -> Iterator[M_co]: ...

    def find(self, name: str, version: str = "") -> M_co:
        """The model of that name; the newest version if none is named. Raises NotFound or ModelUnloading."""

    def versions(self, name: str) -> Mapping[str, M_co]:
        """The versions of `name` that are served, the newest last."""


class ErrorCounter(Protocol):
    """Counts the errors sent to clients."""

    def error(self, error: ServiceError) -> None:
        """Count one error."""


class CallContext(Generic[M_co]):
    """The objects that every call needs. Each front end and the engine process has one, and one for each tenant.

    Attributes:
        kept: the room for kept replies; None in a front end, which has no resumable sessions.
        snapshots: makes and reads `native.snapshots`; None in a front end.
        grant: the tenant whose context it is; None: nobody's, of a server without tenants.
        tenant: its name; empty if there is none.
        store: the shared store; None: this server has none.
        stored: the sessions in it, `native.stored_sessions.StoredSessions`.
        replica: this server.
    """

    def __init__(
        self,
        models: ModelFinder[M_co],
        sessions: SessionTable,
        metrics: ErrorCounter,
        limits: Limits,
        kept: KeptRoom | None = None,
        snapshots: Any = None,
        grant: Grant | None = None,
        replica: Replica = Replica(),  # noqa: B008  # it is frozen
    ) -> None:
        self.models = models
        self.sessions = sessions
        self.metrics = metrics
        self.limits = limits
        self.kept = kept
        self.snapshots = snapshots
        self.grant = grant
        self.replica = replica
        self.tenant = "" if grant is None else grant.tenant
        self.store: Any = None
        self.stored: Any = None
        # Openings of streams by their bytes: `native.known_openings.KnownOpening`s.
        self.known_openings: dict[bytes, Any] = {}
