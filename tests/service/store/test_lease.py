"""The lease: its age, its loss, and that it never comes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from streamcell.service.store import functions
from streamcell.service.store import lease as leases
from streamcell.service.store.connection import Connection
from streamcell.service.store.errors import StoreFailure
from streamcell.service.store.figures import Figures
from streamcell.service.store.lease import boot_clock
from tests.support.mutants import mutant
from tests.support.stores import Counting, Opened, new_id
from tests.support.valkey import ValkeyServer, valkey
from tests.support.waiting import waited

TTL_S = 5.0


class Slow(Connection):
    """A connection whose answers take time on a clock of the test."""

    now_s = 100.0
    takes_s = 0.0

    def exchange(self, commands: Sequence[bytes], *, confirmed: bool = False) -> list[Any]:
        answers = super().exchange(commands, confirmed=confirmed)
        self.now_s += self.takes_s
        return answers


def lease_on(server: ValkeyServer, module: Any = leases) -> tuple[Any, Slow]:
    connection = Slow(server.address, "test", timeout_s=10.0)
    lease = module.Lease(connection, "a", "", TTL_S, Figures(), clock=lambda: connection.now_s)
    return lease, connection


def its_age_counts_from_before_the_renewal_was_sent(server: ValkeyServer, module: Any = leases) -> None:
    """33: the answer was on its way for three of the lease's five seconds."""
    lease, connection = lease_on(server, module)
    assert not lease.valid()
    connection.takes_s = 3.0
    for _ in range(2):  # taken, renewed
        sent_s = connection.now_s
        lease.look()
        assert lease.age_s() == connection.now_s - sent_s
    assert lease.age_s() == 3.0
    assert lease.valid()
    connection.now_s += 1.1
    assert not lease.valid()  # 4.1 of 5 s, though the answer came 1.1 s ago
    lease.stop()


def a_lease_that_ran_out_is_lost(server: ValkeyServer, module: Any = leases) -> None:
    """32: its sessions are told before another lease is taken, under another name."""
    lease, _ = lease_on(server, module)
    lease.look()
    before, seen = lease.hold, []
    lease.on_lost = lambda: seen.append((lease.hold, lease.valid(), lease.boot))
    server.call("DEL", functions.lease_key(lease.boot))
    lease.look()
    assert seen == [(None, False, before.boot)]
    assert lease.boot != before.boot
    lease.look()
    assert lease.hold.boot == lease.boot
    assert lease.hold.floor > before.floor
    lease.stop()
    assert server.call("EXISTS", functions.lease_key(lease.boot)) == 0


def it_is_not_believed_before_the_stores_replicas_are_known(
    server: ValkeyServer, module: Any = leases
) -> None:
    """34: a claim under it would not wait for them."""
    lease, connection = lease_on(server, module)
    real = connection.exchange

    def exchange(commands: Sequence[bytes], *, confirmed: bool = False) -> list[Any]:
        answer, *_ = real(commands, confirmed=confirmed)
        return [answer, StoreFailure("refused", "no INFO for you")]

    connection.exchange = exchange
    with pytest.raises(StoreFailure):
        lease.look()
    assert lease.hold is None
    connection.exchange = real
    for _ in range(2):  # the one that was taken is nobody's; another name is taken
        lease.look()
    assert lease.hold is not None
    lease.stop()


TRACES = [
    its_age_counts_from_before_the_renewal_was_sent,
    a_lease_that_ran_out_is_lost,
    it_is_not_believed_before_the_stores_replicas_are_known,
]
_INFO = "        if isinstance(info, StoreFailure):\n            raise info\n"
MUTANTS: dict[str, tuple[Callable[..., None], str, str]] = {
    "from the answer on": (
        TRACES[0], "replace(self._hold, sent_s=sent_s)", "replace(self._hold, sent_s=self._clock())"
    ),
    "taken at the answer": (
        TRACES[0], "Hold(self.boot, int(answer), sent_s)", "Hold(self.boot, int(answer), self._clock())"
    ),
    "taken in any case": (
        TRACES[2], _INFO, "        if joins:\n            self._taken(answer, sent_s)\n" + _INFO
    ),
    "valid for all of its time": (TRACES[0], "VALID = 0.8", "VALID = 1.0"),
    "a renewal's answer is not looked at": (TRACES[1], "if answer == 1:", "if answer is not None:"),
    "the name stays": (
        TRACES[1], "self.on_lost()\n        self.boot = self._new_boot()", "self.on_lost()"
    ),
    "told behind the next lease": (
        TRACES[1], "self._hold = None\n        self._figures.leases_lost", "self._figures.leases_lost"
    ),
}  # fmt: skip


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.__name__)
def test_the_lease_holds(shared: ValkeyServer, trace: Callable[..., None]) -> None:
    trace(shared)


@pytest.mark.parametrize("mistake", MUTANTS)
def test_the_trace_notices_the_mistake(shared: ValkeyServer, mistake: str) -> None:
    trace, old, new = MUTANTS[mistake]
    wrong = mutant("service.store.lease", old, new)
    with pytest.raises(AssertionError):
        trace(shared, wrong)


def test_its_clock_goes_on_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_BOOTTIME: 7.0}.__getitem__)
    assert boot_clock() == 7.0


def test_a_promoted_replica_gets_all_sessions_even_if_it_says_nothing_of_itself(
    shared: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, connection = lease_on(shared)
    lease.look()
    changed: list[str] = []
    lease.on_changed = lambda: changed.append(lease.primary.run)
    lease.primary = leases.Primary("the one before", 1)

    def silent(*parts: bytes) -> Any:
        raise StoreFailure("timeout", "nothing")

    monkeypatch.setattr(connection, "call", silent)
    with pytest.raises(StoreFailure):
        lease.look()
    lease.look()
    assert len(changed) == 1
    lease.stop()


def test_no_answer_makes_it_older_and_does_not_lose_it() -> None:
    with valkey() as server:
        lease, connection = lease_on(server)
        lease.look()
        connection.now_s += 1.0
        os.kill(server.pid, signal.SIGSTOP)
        connection._valkey.socket_timeout = 0.01
        connection.close()
        with pytest.raises(StoreFailure):
            lease.look()
        assert (lease.hold is not None, lease.age_s()) == (True, 1.0)
        os.kill(server.pid, signal.SIGCONT)
        connection._valkey.socket_timeout = 10.0
        lease.look()
        assert lease.age_s() == 0.0
        lease.stop()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--appendonly", "no"), ["memory alone"]),
        (("--appendonly", "yes"), []),
        (("--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"), ["maxmemory-policy noeviction"]),
    ],
)
def test_a_store_that_may_lose_sessions_by_itself_is_told_once(
    options: tuple[str, ...], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with valkey(*options) as server:
        lease, _ = lease_on(server)
        for _ in range(3):
            lease.look()
        lease.stop()
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == len(said)
    assert all(part in line for part, line in zip(said, warnings, strict=True))


def test_sessions_and_claims_of_a_lost_lease_are_told(
    replica: Callable[..., Opened], shared: ValkeyServer
) -> None:
    a = replica("a")
    session, claimed = a.open(new_id(), create=True), a.claim(new_id(), create=True)
    lost: list[bool] = []
    a.store.on_lost = lambda: lost.append(session.is_lost.is_set())
    shared.call("DEL", functions.lease_key(a.store.boot))
    a.store.changed(session, sync=True)  # its put finds out
    assert waited(lambda: lost)
    assert lost == [True]
    assert waited(a.store.may_tell)
    late = Counting(new_id(), claimed)  # claimed under the lease of before
    a.store.enter(late)
    assert late.is_lost.is_set()
    assert a.claim(session.key, 2).fence > session.fence
