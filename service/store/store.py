"""The shared store of sessions, as the rest of the server sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from streamcell.service.errors import ServiceError

from . import functions
from .asked import Asked
from .cipher import Checked, Cipher, Sealed
from .claims import PATIENCE_S, Claims
from .connection import Connection, StoreAddress
from .errors import REFUSED, StoreConfigError, StoreFailure
from .figures import Figures
from .interface import Claim, Claimed, Stored
from .lease import VALID, Lease
from .sweeper import Sweeper
from .writer import Writer

if TYPE_CHECKING:
    from streamcell.service.settings import Settings

__all__ = ["Claim", "Claimed", "Store", "Stored"]

_log = structlog.get_logger(__name__)

_ANSWER_S = 2.0  # of a call's parts, at most
_CALL_S = 10.0  # of a whole call: then its connection is closed
_FLUSH_S = 5.0  # to write what is left when the server stops


class Store:
    """Claims sessions, writes them behind their steps, and gives them away. No method waits for the store.

    Attributes:
        name: this replica's.
        where: the store's host and port.
        address: where clients reach it without a proxy; empty: only through one.
        lease_s: seconds after which others may take its sessions if it is dead.
        level_sync: whether sessions are stored before their replies, if their clients do not ask for less.
        figures: what the metrics show.
        on_release: called with the id of a session that another replica asks for and that is entered here, perhaps
            several times.
        on_lost: called after the lease was lost and all sessions have been told.
    """

    def __init__(
        self,
        address: StoreAddress,
        name: str,
        *,
        advertise: str = "",
        lease_s: float = 5.0,
        linger_s: float = 60.0,
        level_sync: bool = False,
        patience_s: float = PATIENCE_S,
        cipher: Cipher | None = None,
        text: str = functions.TEXT,
    ) -> None:
        """Make it; `start` connects.

        Args:
            address: the store's.
            name: this replica's.
            advertise: where clients reach it without a proxy; empty: only through one.
            lease_s: seconds after which others may take its sessions if it is dead.
            linger_s: seconds that a session without an owner is kept.
            level_sync: as the attribute.
            patience_s: that a claim waits for the session's owner.
            cipher: seals the sessions; None: with a checksum alone.
            text: of the store's functions.

        Raises:
            ModuleNotFoundError: `valkey` is not installed; the extra `store` brings it.
        """
        self.where = str(address)
        self.name, self.address = name, advertise
        self.lease_s, self.level_sync = lease_s, level_sync
        self.figures = Figures()
        self.on_release: Callable[[bytes], None] = lambda session: None
        self.on_lost: Callable[[], None] = lambda: None
        self.cipher: Cipher = Checked() if cipher is None else cipher

        def connection(job: str) -> Connection:
            timeout_s = min(_ANSWER_S, lease_s / 3) if job == "lease" else _ANSWER_S
            return Connection(address, f"streamcell-{job}", timeout_s=timeout_s, text=text)

        self._connections = [connection(job) for job in ("lease", "writer", "claims", "asked")]
        lease, writer, claims, asked = self._connections
        self._lease = Lease(lease, name, advertise, lease_s, self.figures)
        self._writer = Writer(writer, self._lease, self.cipher, self.figures)
        self._claims = Claims(claims, self._lease, self._writer, self.cipher, self.figures, patience_s)
        self._asked = Asked(asked, self._lease, self.figures, self._asked_for)
        sweeper = Sweeper(linger_s, lambda: self._lease.boot, self._free_if_not_here)
        self._claims.idle = sweeper.step
        self._lease.on_lost = self._lost
        self._lease.on_changed = self._writer.all_changed
        self._lease.on_look = self._limit_calls

    @classmethod
    def of(cls, settings: Settings) -> Store | None:
        """The store that the settings name; None: they name none.

        Raises:
            StoreConfigError: they cannot be used; the text says what to change.
            ModuleNotFoundError: a package of the extra `store` is not installed.
        """
        if settings.store is None:
            return None
        address = StoreAddress.parse(
            settings.store, settings.store_user, settings.store_password_file, settings.store_ca
        )
        return cls(
            address,
            settings.replica_name,
            advertise=settings.advertise or "",
            lease_s=settings.lease_s,
            linger_s=settings.linger_s,
            level_sync=settings.durability == "store-sync",
            cipher=None if settings.store_key_file is None else Sealed(settings.store_key_file),
        )

    @property
    def boot(self) -> str:
        """The name under which this replica owns sessions: its own and what tells one lease from the next."""
        return self._lease.boot

    def start(self) -> None:
        """Take the lease and begin.

        A store that does not answer is no error: openings get `STORE_UNAVAILABLE` until it does.

        Raises:
            StoreConfigError: the store refuses this replica; the text says why.
        """
        try:
            self._lease.look()
        except StoreFailure as error:
            if error.kind == REFUSED:
                raise StoreConfigError(f"--store: {error}") from error
            self.figures.failed(error, "starting")
        for part in (self._lease, self._writer, self._claims, self._asked):
            part.start()

    def stop(self) -> None:
        """Write what is left, for some seconds at most, give the lease back, and end."""
        self._claims.stop()
        self._asked.stop()
        self._writer.stop(_FLUSH_S)
        self._lease.stop()

    def claim(self, asked: Claim, done: Callable[[Claimed | ServiceError], None]) -> None:
        """Claim a session. `done` gets the answer, on a thread of the store, within some seconds.

        Answers beside `Claimed`: `SessionNotFound` if there is no such session, or it is another tenant's or token's;
        `SessionTakenOver` if the opening came late; `SessionElsewhere` if another replica has it and does not give it
        away; `StoreUnavailable`; `StoredStateInvalid`.

        After `Claimed` call `enter`, or `free` if the session cannot be served here.
        """
        self._claims.claim(asked, done)

    def free(self, session: bytes) -> None:
        """Give away a session that was claimed and cannot be entered. The store does so itself only after seconds."""
        self._writer.free(session)

    def enter(self, stored: Stored) -> None:
        """Write the session, and its changes from now on. If the lease was lost since its claim, tell it so at once."""
        if not self._writer.enter(stored):
            stored.lost()

    def changed(self, stored: Stored, *, sync: bool) -> None:
        """Note that the session has changed; `sync`: somebody waits until it is stored."""
        self._writer.changed(stored, sync)

    def release(self, stored: Stored, done: Callable[[], None]) -> None:
        """Write what is left of the session and give it away, then call `done`, on a thread of the store or this one.

        It takes until the store answers. The session must not change any more.
        """
        self._writer.release(stored, done)

    def delete(self, stored: Stored) -> None:
        """Delete what the store has of the session: it has ended."""
        self._writer.delete(stored)

    def may_tell(self) -> bool:
        """True while replies may leave: nobody else can have this replica's sessions."""
        return self._lease.valid()

    def lag_s(self) -> float:
        """Age of the oldest change that is not in the store, in seconds; 0: all are."""
        return self._writer.lag_s()

    def lease_left_s(self) -> float:
        """Seconds for which replies may leave if the lease is not renewed; 0 if none may."""
        return max(0.0, VALID * self.lease_s - self._lease.age_s())

    def lease_age_s(self) -> float:
        """Seconds since the latest renewal of the lease was sent; infinite without a lease."""
        return self._lease.age_s()

    def _asked_for(self, session: bytes) -> None:
        if self._writer.entered(session) is not None:
            self.on_release(session)
        else:
            self._free_if_not_here(session)

    def _free_if_not_here(self, session: bytes) -> None:
        """Give away a session that this replica owns and does not have: its claim's answer was lost, or its opening."""
        if self._writer.entered(session) is None and not (
            self._claims.under_way(session) or self._writer.busy_with(session)
        ):
            self._writer.free(session)

    def _lost(self) -> None:
        lost, waiting = self._writer.lose()
        self.figures.fenced += len(lost)
        for tell in [each.lost for each in lost] + waiting + [self.on_lost]:
            try:
                tell()
            except Exception as error:  # one session's bug must not keep the others in the dark
                _log.error("telling a session that its lease is lost failed", exc_info=error)

    def _limit_calls(self) -> None:
        for connection in self._connections[1:]:
            connection.limit(_CALL_S)
