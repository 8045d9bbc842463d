"""A replica's lease: while it has one, its sessions are its own. It is renewed often, and never brought back."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from . import functions
from .connection import Connection
from .errors import StoreFailure
from .figures import Figures

_log = structlog.get_logger(__name__)

# Of its time, counted from before it was renewed: the rest is for clocks that run at different rates.
VALID = 0.8
_RENEWALS = 5  # in a lease's time


def boot_clock() -> float:
    """Seconds that go on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Hold:
    """A lease that was taken.

    Attributes:
        boot: the name under which this replica owns sessions.
        floor: all fences of claims under it are above.
        sent_s: before the latest renewal was sent.
    """

    boot: str
    floor: int
    sent_s: float


@dataclass(frozen=True)
class Primary:
    """What the lease's thread saw of the store last: which run of a process it is, and how many replicas it has."""

    run: str
    replicas: int


class Lease:
    """Takes and renews it on a thread of its own.

    Attributes:
        boot: the name under which this replica owns sessions; a new one after each loss.
        primary: the store as last seen; None: never.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        address: str,
        ttl_s: float,
        figures: Figures,
        *,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """`name` is the replica's, `address` where clients reach it, or empty; `ttl_s` the lease's time."""
        self._connection = connection
        self._name = name
        self._address = address.encode()
        self._ttl_s = ttl_s
        self._valid_s = VALID * ttl_s
        self._figures = figures
        self._clock = clock
        self._hold: Hold | None = None
        self.boot = self._new_boot()
        self.primary: Primary | None = None
        # The lease is lost: nothing under it counts any more. Before the next one is taken.
        self.on_lost: Callable[[], None] = lambda: None
        # A lease was taken, under another boot id.
        self.on_taken: Callable[[], None] = lambda: None
        # The store is another process than before: a replica that was promoted, or the same after a restart.
        self.on_changed: Callable[[], None] = lambda: None
        # At each look, so that a call that never ends does not hold up its thread.
        self.on_look: Callable[[], None] = lambda: None
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="store-lease", daemon=True)

    def _new_boot(self) -> str:
        return f"{self._name}-{secrets.token_hex(4)}"

    @property
    def hold(self) -> Hold | None:
        """The lease that this replica has; None: none."""
        return self._hold

    @property
    def replicas(self) -> int:
        """How many replicas the store has."""
        return 0 if self.primary is None else self.primary.replicas

    def age_s(self) -> float:
        """Seconds since the latest renewal was sent; without a lease infinite."""
        hold = self._hold
        return float("inf") if hold is None else self._clock() - hold.sent_s

    def valid(self) -> bool:
        """True while nobody else can have this replica's sessions, by its own clock."""
        hold = self._hold
        return hold is not None and self._clock() - hold.sent_s < self._valid_s

    def look_now(self) -> None:
        """Look at the lease at once: somebody was told that it is gone."""
        self._wake.set()

    def start(self) -> None:
        """Take it, and renew it from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Give it back: all sessions that this replica still has are free."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._hold is not None:
            try:
                self._connection.ask(functions.call("leave", [functions.lease_key(self.boot)], []))
            except StoreFailure as error:
                _log.warning("lease not given back", error=str(error))
            self._hold = None
        self._connection.close()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                self.on_look()
                self.look()
            except StoreFailure as error:
                self._figures.failed(error, "lease")
            except Exception as error:  # a bug must not end it
                _log.error("looking at the lease failed", exc_info=error)
            if not self._stopping:
                # Awake, too, if it was told to look: but not in a loop without a pause.
                self._wake.wait(self._ttl_s / _RENEWALS)
                time.sleep(min(0.02, self._ttl_s / 50))

    def look(self) -> None:
        """Renew the lease, or take one, and look at the store.

        Raises:
            StoreFailure: the store has not answered; the lease grows older.
        """
        key, milliseconds = functions.lease_key(self.boot), b"%d" % int(self._ttl_s * 1000)
        joins = self._hold is None
        name, keys = ("join", [key, functions.FENCE]) if joins else ("renew", [key])
        sent_s = self._clock()
        answer, info = self._connection.exchange(
            [
                functions.call(name, keys, [self._address, milliseconds]),
                functions.packed(b"INFO", b"server", b"replication"),
            ]
        )
        if isinstance(answer, StoreFailure):
            raise answer
        if self._hold is not None:
            if answer == 1:
                self._hold = replace(self._hold, sent_s=sent_s)
            else:
                self._lost()
        if isinstance(info, StoreFailure):
            raise info
        self._seen(_primary(info))
        if joins:  # not before it is known for how many replicas of the store claims have to wait
            self._taken(answer, sent_s)

    def _taken(self, answer: Any, sent_s: float) -> None:
        if not isinstance(answer, bytes):  # somebody has this name
            self.boot = self._new_boot()
            self._wake.set()
            return
        self._hold = Hold(self.boot, int(answer), sent_s)
        _log.info("lease taken", boot=self.boot)
        self.on_taken()

    def _lost(self) -> None:
        _log.warning("lease lost: the sessions in the store go on elsewhere", boot=self.boot)
        self._hold = None
        self._figures.leases_lost += 1
        self.on_lost()
        self.boot = self._new_boot()
        self._wake.set()

    def _seen(self, primary: Primary) -> None:
        before, self.primary = self.primary, primary
        if before is not None and before.run == primary.run:
            return
        if before is not None:  # first, for this is seen once
            _log.warning("the store is another process than before: writing all sessions again")
            self.on_changed()
        self._look_over(primary)

    def _look_over(self, primary: Primary) -> None:
        """Warn of a store that may lose sessions by itself."""
        about = _fields(self._connection.call(b"INFO", b"memory", b"persistence"))
        policy = about.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            _log.warning(
                "the store may remove sessions when it is full: set maxmemory-policy noeviction",
                policy=policy,
            )
        if about.get("aof_enabled") == "0" and not primary.replicas:
            _log.warning(
                "the store keeps sessions in its memory alone: set appendonly yes, or give it a replica"
            )


def _primary(info: bytes) -> Primary:
    fields = _fields(info)
    online = sum(name.startswith("slave") and "state=online" in value for name, value in fields.items())
    return Primary(fields.get("run_id", ""), online)


def _fields(info: bytes) -> dict[str, str]:
    lines = info.decode(errors="replace").splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}
