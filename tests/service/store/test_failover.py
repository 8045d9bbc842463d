"""A Valkey with a replica: what was told outlives the primary."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from streamcell.service.store import functions
from streamcell.service.store import store as stores
from streamcell.service.store.connection import StoreAddress
from streamcell.service.store.errors import StoreUnavailable
from streamcell.service.store.lease import Lease
from tests.support.cutting_proxy import CuttingProxy
from tests.support.mutants import mutant
from tests.support.stores import Opened, new_id, opened
from tests.support.valkey import ValkeyServer, replica_of, valkey
from tests.support.waiting import waited


@pytest.fixture
def pair() -> Iterator[tuple[ValkeyServer, ValkeyServer]]:
    """A primary and its replica."""
    with valkey() as primary, replica_of(primary) as replica:
        yield primary, replica


@contextmanager
def held_up(server: ValkeyServer) -> Iterator[None]:
    """The process stands still: its connections are there, and it answers nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def store_behind(proxy: CuttingProxy, module: Any = stores) -> Iterator[Opened]:
    """A store that reaches Valkey by an address that can be led elsewhere."""
    address = StoreAddress.parse(f"valkey://{proxy.target}")
    with opened(module.Store(address, "a", lease_s=20.0, patience_s=2.0)) as store:
        assert waited(lambda: seen(store).replicas == 1)
        yield store


def seen(store: Opened) -> Lease:
    """The store's lease, which looks at Valkey now."""
    store.store._lease.look_now()
    return store.store._lease


def nothing_is_told_that_only_the_primary_has(
    pair: tuple[ValkeyServer, ValkeyServer], module: Any = stores
) -> None:
    """34: a claim on the primary only, a failover, and the record names the owner of before. The same with a put."""
    primary, replica = pair
    with CuttingProxy(f"127.0.0.1:{primary.port}") as proxy, store_behind(proxy, module) as a:
        session = a.open(new_id(), create=True)
        session.wait_stored(0)
        session.told.clear()
        with held_up(replica):
            session.number = 1
            a.store.changed(session, sync=True)
            answer = a.ask(new_id(), create=True)
            assert isinstance(answer, StoreUnavailable), answer
            assert waited(
                lambda: primary.record(session.key)["at"] == functions.place(1, 0)
            )  # the primary has it
            assert session.told == []
        session.wait_stored(1)
        assert replica.record(session.key)["at"] == functions.place(1, 0)
        claimed = a.claim(key := new_id(), create=True)
        assert replica.record(key)["fence"] == b"%d" % claimed.fence


def all_is_written_again_after_a_failover(
    pair: tuple[ValkeyServer, ValkeyServer], module: Any = stores, most_s: float = 60.0
) -> None:
    """34: the promoted replica lacks a put whose session does not change any more."""
    primary, replica = pair
    with CuttingProxy(f"127.0.0.1:{primary.port}") as proxy, store_behind(proxy, module) as a:
        session = a.open(new_id(), create=True)
        a.step(session)
        primary.kill()
        replica.call("REPLICAOF", "NO", "ONE")
        replica.call("HSET", functions.record_key(session.key), "at", functions.place(0, 0), "image", b"old")
        proxy.lead_to(f"127.0.0.1:{replica.port}")
        other = a.store._lease.primary
        assert waited(lambda: seen(a).primary != other)
        assert waited(lambda: replica.record(session.key)["at"] == functions.place(1, 0), most_s)
        assert a.store.may_tell()
        assert not session.is_lost.is_set()


def _without_waiting(name: str) -> Any:
    """The store whose writer, or whose claims, do not wait for the replica."""
    wrong = mutant(f"service.store.{name}", "confirmed=self._lease.replicas > 0", "confirmed=False")
    made = mutant("service.store.store")
    setattr(made, name.capitalize(), getattr(wrong, name.capitalize()))
    return made


@pytest.mark.parametrize(
    "trace", [nothing_is_told_that_only_the_primary_has, all_is_written_again_after_a_failover]
)
def test_a_failover_takes_nothing(pair: tuple[ValkeyServer, ValkeyServer], trace: Any) -> None:
    trace(pair)


@pytest.mark.parametrize("name", ["writer", "claims"])
def test_the_trace_notices_a_call_that_does_not_wait(
    pair: tuple[ValkeyServer, ValkeyServer], name: str
) -> None:
    with pytest.raises(AssertionError):
        nothing_is_told_that_only_the_primary_has(pair, _without_waiting(name))


def test_the_trace_notices_sessions_that_are_not_written_again(
    pair: tuple[ValkeyServer, ValkeyServer],
) -> None:
    wrong = mutant("service.store.store", "self._lease.on_changed = self._writer.all_changed", "pass")
    with pytest.raises(AssertionError):
        all_is_written_again_after_a_failover(pair, wrong, 0.5)


def test_a_lost_replica_stops_nothing(pair: tuple[ValkeyServer, ValkeyServer]) -> None:
    primary, replica = pair
    with CuttingProxy(f"127.0.0.1:{primary.port}") as proxy, store_behind(proxy) as a:
        session = a.open(new_id(), create=True)
        replica.kill()
        session.number = 1
        a.store.changed(session, sync=True)
        assert waited(lambda: seen(a).replicas == 0)
        session.wait_stored(1)
