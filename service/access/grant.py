"""What one tenant may do and uses now: enforces the terms of the policy file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .access_errors import NotPermitted, QuotaExceeded
from .bytes_in_flight import BytesInFlight
from .pacing import Rate
from .policy import Kind, Terms

_FRESH_S = 1.0  # who has had no message in a batch for so long has none that wait
_RETRY_S = 1.0  # nobody knows when the tenant's own sessions and generations end


class Grant:
    """A tenant's terms, which may change while it is served, and what it has taken. Thread-safe.

    Attributes:
        tenant: its name.
        operator: whether it is that of the tenant's operators, whom no terms bind.
        in_flight: the bytes of its unanswered messages.
    """

    def __init__(
        self,
        tenant: str,
        terms: Callable[[], Terms] = Terms,
        clock: Callable[[], float] = time.monotonic,
        *,
        operator: bool = False,
    ) -> None:
        """`terms`: returns what holds now."""
        self.tenant = tenant
        self.operator = operator
        self._terms = terms
        self.in_flight = BytesInFlight(lambda: self.terms.max_bytes_in_flight)
        self._rate = Rate(clock)
        self._clock = clock
        self._waited = (0.0, 0.0)  # how long a message has waited for its run, and when that was
        self._sessions = self._generations = 0
        self._lock = threading.Lock()

    @property
    def terms(self) -> Terms:
        """What holds now."""
        return self._terms()

    def check(self, kind: Kind) -> None:
        """Raise NotPermitted if the tenant may not make calls of that kind."""
        allowed = self.terms.calls
        if kind not in allowed:
            raise NotPermitted(
                f"tenant {self.tenant!r} may not make calls of the kind {kind!r}, only: "
                f"{', '.join(sorted(allowed)) or 'none'}",
                tenant=self.tenant,
                call=kind,
            )

    def sees(self, model: str) -> bool:
        """True if the tenant may use a model of that name."""
        models = self.terms.models
        return models is None or model in models

    @property
    def sessions(self) -> int:
        """How many sessions it has taken."""
        return self._sessions

    def take_sessions(self, count: int) -> None:
        """Take room for `count` more sessions, all or none.

        Raises:
            QuotaExceeded: the tenant may not have so many.
        """
        most = self.terms.max_sessions
        self._expect_prompt()
        with self._lock:
            if most is not None and self._sessions + count > most:
                raise QuotaExceeded(
                    f"tenant {self.tenant!r} may have {most} sessions and has {self._sessions}, {count} more are asked "
                    "for: close some, or try again later",
                    retry_s=_RETRY_S,
                    tenant=self.tenant,
                    quota="max_sessions",
                    limit=most,
                )
            self._sessions += count

    def give_sessions(self, count: int) -> None:
        """Give back the room of `count` sessions."""
        with self._lock:
            self._sessions -= count

    @property
    def generations(self) -> int:
        """How many generations and beam searches it has begun, or has waiting."""
        return self._generations

    def take_generation(self, *, again: bool = False) -> None:
        """Take room for one more generation or beam search; `again`: it goes on from an earlier process.

        Raises:
            QuotaExceeded: the tenant may not have so many; not for one that goes on.
        """
        most = self.terms.max_generations
        with self._lock:
            if most is not None and self._generations >= most and not again:
                raise QuotaExceeded(
                    f"tenant {self.tenant!r} may have {most} generations and beam searches at a time, and has "
                    f"{self._generations}: wait for one to end, or try again later",
                    retry_s=_RETRY_S,
                    tenant=self.tenant,
                    quota="max_generations",
                    limit=most,
                )
            self._generations += 1

    def give_generation(self) -> None:
        """Give back the room of one."""
        with self._lock:
            self._generations -= 1

    @property
    def idle(self) -> bool:
        """True if nothing of the tenant lives, and nothing that it has done counts: a new grant would be the same."""
        stale = self._clock() - self._waited[1] >= _FRESH_S
        live = self._sessions or self._generations or self.in_flight.bytes
        return not live and stale and self._rate.rested

    def waited(self, wait_s: float) -> None:
        """Note how long the tenant's oldest message of a batch waited for that batch."""
        self._waited = wait_s, self._clock()

    def _expect_prompt(self) -> None:
        """Raise QuotaExceeded if the tenant's messages wait too long: a new one would wait at least as long."""
        most_s = self.terms.max_queue_s
        wait_s, noted_s = self._waited
        if most_s is not None and wait_s > most_s and self._clock() - noted_s < _FRESH_S:
            raise QuotaExceeded(
                f"messages of tenant {self.tenant!r} wait {wait_s:.3g} s, and new ones are taken while they wait "
                f"{most_s:g} s at most: try again later",
                retry_s=wait_s,
                tenant=self.tenant,
                quota="max_queue_s",
                limit=f"{most_s:g}",
            )

    def spend(self, steps: int) -> float:
        """Charge accepted timesteps; returns for how many seconds the tenant may send no more."""
        per_s = self.terms.steps_per_s
        return 0.0 if per_s is None else self._rate.spend(steps, per_s)  # 0 timesteps: what is owed

    def expect_room(self) -> None:
        """Raise QuotaExceeded if the tenant has sent more timesteps than it may: for calls that cannot wait."""
        per_s = self.terms.steps_per_s
        if per_s is not None and (wait_s := self._rate.due()) > 0:
            raise QuotaExceeded(
                f"tenant {self.tenant!r} may send {per_s:g} timesteps a second and has sent more: try again in "
                f"{wait_s:.3g} s",
                retry_s=wait_s,
                tenant=self.tenant,
                quota="steps_per_s",
                limit=f"{per_s:g}",
            )


class Taken:
    """The room of one request's rows. Thread-safe."""

    def __init__(self, grant: Grant, count: int) -> None:
        """Take it; raises QuotaExceeded."""
        grant.take_sessions(count)
        self._grant = grant
        self._count = count
        self._lock = threading.Lock()

    def give(self) -> None:
        """Give it back; later calls do nothing."""
        with self._lock:
            count, self._count = self._count, 0
        self._grant.give_sessions(count)


class Members:
    """The tenant's room that one stream of frames holds: for its members, and for those that frames will open.

    A stream without any holds the room of one: else a tenant could open any number of them.
    """

    def __init__(self, grant: Grant) -> None:
        self._grant = grant
        self._least = self._taken = self._pending = 0
        self._over = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Take the room of an empty stream; raises QuotaExceeded."""
        self._grant.take_sessions(1)
        self._least = 1

    def ask(self, count: int) -> None:
        """Take room for members that a frame will open; raises QuotaExceeded."""
        with self._lock:
            self._grant.take_sessions(max(self._least, self._taken + count) - max(self._least, self._taken))
            self._taken += count
            self._pending += count
            over = self._over
        if over:
            self.close()

    def drop(self, asked: int) -> None:
        """A frame that asked for `asked` members will not run."""
        with self._lock:
            asked = 0 if self._over else asked
            self._pending -= asked
            self._give(asked)

    def settle(self, asked: int, members: int) -> None:
        """A frame that asked for `asked` members is done, and now there are `members`."""
        with self._lock:
            self._pending -= asked
            self._give(0 if self._over else self._taken - self._pending - members)

    def close(self) -> None:
        """The stream has ended; room for a frame that still arrives is given back at once."""
        with self._lock:
            spare = max(self._least, self._taken)
            self._least = self._taken = 0
            self._over = True
        self._grant.give_sessions(spare)

    def _give(self, count: int) -> None:
        """Give back the room of `count` members. With the lock held."""
        held = max(self._least, self._taken)
        self._taken -= count
        self._grant.give_sessions(held - max(self._least, self._taken))
