"""Claims: answers that are lost, leases and sessions that end while a claim is under way, and who sweeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from streamcell.service.errors import SessionNotFound
from streamcell.service.store import functions
from streamcell.service.store.connection import Connection
from streamcell.service.store.errors import TIMEOUT, StoreFailure
from streamcell.service.store.lease import Hold
from streamcell.service.store.store import Store
from streamcell.service.store.sweeper import Sweeper
from tests.support.mutants import mutant
from tests.support.stores import Opened, new_id, opened
from tests.support.valkey import ValkeyServer, valkey
from tests.support.waiting import waited


def behind_the_next_claim(a: Opened, do: Callable[[], None]) -> None:
    """Do something between the store's answer to the next claim and its arrival."""
    connection = a.store._claims._connection
    real = connection.exchange

    def exchange(commands: Sequence[bytes], *, confirmed: bool = False) -> list[Any]:
        answers = real(commands, confirmed=confirmed)
        if any(functions._NAMES["claim"] in command for command in commands):  # not a sweep
            connection.exchange = real  # type: ignore[method-assign]
            do()
        return answers

    connection.exchange = exchange  # type: ignore[method-assign]


def _fails() -> None:
    raise StoreFailure(TIMEOUT, "the answer is lost")


def a_claim_whose_answer_is_lost_is_made_again(a: Opened) -> None:
    """The store has taken the attempt: the same claim again is not late."""
    behind_the_next_claim(a, _fails)
    first = a.claim(key := new_id(), 5, create=True)
    behind_the_next_claim(a, _fails)
    second = a.claim(key, 6)
    assert second.fence > first.fence
    assert second.created


def a_claim_under_a_lease_that_is_lost_meanwhile_does_not_count(a: Opened) -> None:
    """A duty that the model found: an opening that was taken and not yet answered is told, too."""
    lease = a.store._lease

    def is_another(hold: Hold | None) -> bool:
        return hold is not None and hold.boot != before

    def lose() -> None:
        a.store._claims._connection.call(b"DEL", functions.lease_key(before))
        lease.look_now()
        assert waited(lambda: is_another(lease.hold))

    assert waited(lambda: lease.hold)
    before = lease.boot
    behind_the_next_claim(a, lose)
    claimed = a.claim(new_id(), create=True)
    hold = lease.hold
    assert hold is not None
    assert claimed.fence > hold.floor


def a_session_that_ends_while_it_is_claimed_is_not_held(a: Opened) -> None:
    """It is live here when the store is asked, and deleted when the answer comes."""
    session = a.open(new_id(), create=True)
    a.step(session)

    def end() -> None:
        session.ended = True
        a.store.delete(session)

    behind_the_next_claim(a, end)
    answer = a.ask(session.key, 2)
    assert isinstance(answer, SessionNotFound), answer


def a_claim_waits_for_the_last_put_of_a_release(a: Opened) -> None:
    """A client that is told to go and comes back here must find its last step."""
    session = a.open(new_id(), create=True)
    a.step(session)
    writer = a.store._writer
    gate, real, busy_with = threading.Event(), writer._connection.exchange, writer.busy_with

    def exchange(commands: Sequence[bytes], *, confirmed: bool = False) -> list[Any]:
        assert gate.wait(60)
        return real(commands, confirmed=confirmed)

    def asked(session: bytes) -> bool:
        busy = busy_with(session)
        gate.set()
        return busy

    writer._connection.exchange = exchange  # type: ignore[method-assign]
    session.number = 2
    a.store.release(session, lambda: None)
    # The put goes on once the claim has seen it, or has been answered without.
    writer.busy_with = asked  # type: ignore[method-assign]
    behind_the_next_claim(a, gate.set)
    assert a.claim(session.key, 2).number == 2


TRACES = [
    a_claim_whose_answer_is_lost_is_made_again,
    a_claim_under_a_lease_that_is_lost_meanwhile_does_not_count,
    a_session_that_ends_while_it_is_claimed_is_not_held,
    a_claim_waits_for_the_last_put_of_a_release,
]
MUTANTS: dict[str, tuple[Callable[[Opened], None], str, str]] = {
    "a claim again is late": (TRACES[0], "asked.sent = True", "pass"),
    "any lease will do": (TRACES[1], "elif not same:", "elif False:"),
    "what was held is held": (
        TRACES[2], "if live is None or live.fence != asked.held:", "if False:"
    ),
    "nobody waits for the writer": (TRACES[3], "elif self._writer.busy_with(asked.claim.session):", "elif False:"),
}  # fmt: skip


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.__name__)
def test_claims_hold(replica: Callable[..., Opened], trace: Callable[[Opened], None]) -> None:
    trace(replica())


@pytest.mark.parametrize("mistake", MUTANTS)
def test_the_trace_notices_the_mistake(shared: ValkeyServer, mistake: str) -> None:
    trace, old, new = MUTANTS[mistake]
    module: Any = mutant("service.store.store")
    module.Claims = mutant("service.store.claims", old, new).Claims
    with opened(module.Store(shared.address, "a")) as a, pytest.raises(AssertionError):
        trace(a)


def test_replicas_take_turns_to_sweep_and_leave_what_lives(shared: ValkeyServer) -> None:
    """All records are looked at, some at a time; of two replicas one does it."""
    with valkey() as server, opened(Store(server.address, "a")) as a, opened(Store(server.address, "b")) as b:
        held = [a.open(new_id(), create=True) for _ in range(5)]
        for each in held:
            a.step(each)
        released = [b.open(new_id(), create=True) for _ in range(600)]
        for each in released:
            b.store.release(each, lambda: None)
        assert waited(lambda: not b.store._writer._leaving)
        server.call("SET", "sc:s:strange", "no record")
        server.call("DEL", functions.SWEEP)
        connection = Connection(server.address, "test", timeout_s=10.0)
        sweepers = [Sweeper(-1.0, lambda: "a-1", pytest.fail) for _ in range(2)]
        steps = 0
        assert sweepers[0].step(connection) < 1.0  # more is left
        assert sweepers[1].step(connection) >= 0.5  # the other one's turn
        while sweepers[0].step(connection) < 0.5:
            steps += 1
        assert 1 <= steps < 10
        assert [server.record(each.key) == {} for each in (*held, released[0], released[-1])] == [
            *[False] * 5, True, True,
        ]  # fmt: skip
        assert server.call("DBSIZE") == 5 + 1 + 4  # sessions, the strange one; two leases, fence, whose turn
        connection.close()


def test_a_dead_replicas_sessions_wait_for_their_clients_and_are_deleted_then() -> None:
    with valkey() as server, opened(Store(server.address, "a")) as a, opened(Store(server.address, "b")) as b:
        back, gone = (a.open(new_id(), create=True) for _ in range(2))
        for each in (back, gone):
            a.step(each)
        for part in (
            a.store._lease,
            a.store._writer,
        ):  # killed: its lease runs out, and it gives nothing back
            part._connection.exchange = _refuse  # type: ignore[method-assign]
        server.call("DEL", functions.lease_key(a.store.boot))
        connection = Connection(server.address, "test", timeout_s=10.0)
        sweeper = Sweeper(0.2, lambda: b.store.boot, lambda session: None)

        def look() -> dict[str, bytes]:
            server.call("DEL", functions.SWEEP)
            sweeper.step(connection)
            return server.record(gone.key)

        assert look()["owner"] == b""
        came_back = b.open(back.key, 2)
        assert came_back.number == 1
        assert waited(lambda: look() == {})
        b.step(came_back)
        connection.close()


def _refuse(*arguments: object, **more: object) -> list[Any]:
    raise StoreFailure(TIMEOUT, "dead")
