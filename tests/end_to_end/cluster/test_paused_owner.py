"""A replica that was stopped for longer than its lease wakes up: what it still has changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streamcell.client.protocol.resume import Resumption
from tests.support.chain import Chained
from tests.support.cluster import Cluster, Eventually
from tests.support.waiting import waited

pytestmark = pytest.mark.alone

LEASE_S = 1.5
FLAGS = ("--lease-s", str(LEASE_S), "--max-sessions", "64", "--max-chunk", "4")

Start = Callable[..., Cluster]


@pytest.fixture
def started(chain: Path) -> Iterator[Start]:
    """Starts a cluster of two replicas, with a fault of `tests.support.wrong_replica` or none."""
    made: list[Cluster] = []

    def start(fault: str = "") -> Cluster:
        module = ("tests.support.wrong_replica", fault) if fault else None
        made.append(Cluster(chain, *FLAGS, names=("a", "b"), module=module))
        return made[-1].start()

    yield start
    for each in made:
        each.stop()


# Waits for what a mutant may never do; a minute each would be long.
soon = partial(waited, most_s=10)
_TRIES = 4


def has_put(cluster: Cluster, name: str) -> bool:
    """True if the replica has brought to the store what it was about to, or forgot it, or the store has refused it."""
    replica = cluster.replicas[name]
    refused = replica.metric("streamcell_store_errors_total", kind="failed")
    return refused > 0 or not replica.metric("streamcell_store_lag_seconds")


def woken(cluster: Cluster, eventually: Eventually, *, both: bool = True) -> None:
    """Replica a is stopped for long with changes that are not stored; its sessions go on with b, then a wakes up.

    Then b is killed and, if `both`, a as well, and sessions go on with what the store has.
    """
    with Chained(cluster.target, 12, life=1 << 60) as clients:
        clients.go_on(eventually)
        cluster.wires["a"].part()
        clients.go_on(eventually)
        cluster.pause("a")
        sent = list(clients.sent)
        cluster.wires["a"].heal()
        cluster.restart_proxy()  # its clients lose their streams
        clients.go_on(eventually)
        clients.know_stored(eventually, sent)  # from b, and more than a has
        clients.be_still(eventually)
        cluster.go_on("a")
        assert eventually(lambda: has_put(cluster, "a"))
        for name in ("b", "a") if both else ("b",):
            cluster.kill(name)
        if both:
            cluster.restart("a")
        cluster.restart_proxy()
        clients.stir()
        clients.go_on(eventually)


def noticed(start: Start, fault: str = "", *, both: bool = True) -> bool:
    """True if clients notice the fault: it has its chance by turns, for a woken replica may also hear of b first."""
    for _ in range(_TRIES):
        cluster = start(fault)
        try:
            woken(cluster, soon, both=both)
        except AssertionError as error:
            if "STATE_BEHIND" in str(error):
                return True
        finally:
            cluster.stop()
    return False


def test_what_a_woken_replica_has_changes_nothing(started: Start, eventually: Eventually) -> None:
    woken(started(), eventually, both=False)


def test_the_fence_in_the_store_holds_a_replica_that_does_not_look_at_its_lease(
    started: Start, eventually: Eventually
) -> None:
    woken(started("careless"), eventually)


def test_without_the_fence_that_replica_is_noticed(started: Start) -> None:
    assert noticed(started, "no_fence")


def test_a_replica_that_answers_from_memory_is_noticed(started: Start) -> None:
    assert noticed(started, "from_memory", both=False)


def forgets(self: Any) -> None:
    """A client that keeps a message only until it is answered, not until it is stored."""
    self._held.forget(0)


def test_a_client_that_forgets_what_is_not_stored_is_noticed(
    started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resumption, "_forget", forgets)
    assert noticed(started)
