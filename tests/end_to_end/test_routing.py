"""Envoy and HAProxy before three real servers: the files of deploy/proxies/cluster/ send each session where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.replicas_behind import NAMES, Replicas, replicas_of
from tests.support.resumable import Owner, Raw, reason_of, save_sum, step, sums

# On a machine that is busy with other tests the proxies' health checks time out, and they send sessions elsewhere.
pytestmark = pytest.mark.alone

PROXIES = pytest.mark.parametrize("name", ["envoy", "haproxy"])
Eventually = Callable[[Callable[[], bool]], bool]
Proxied = Callable[[str], Any]


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with replicas_of(save_sum(tmp_path_factory.mktemp("models")), "--settle-s", "2") as made:
        yield made


@pytest.fixture
def proxied(replicas: Replicas, program: Any, tmp_path: Path) -> Proxied:
    replicas.begin_again()
    return lambda name: replicas.behind(name, program, tmp_path)


def call(target: str, owner: Owner, opening: Any, replica: str = "") -> Raw:
    """A call with what the owner's client sends to proxies."""
    named = [("streamcell-replica", replica)] if replica else []
    return Raw(target, opening, metadata=[("streamcell-session", owner.id), *named])


def begun(target: str, owner: Owner, replica: str = "") -> str:
    """Open a session and break its stream; the name of the replica that has it."""
    raw = call(target, owner, owner.opening(), replica)
    told: str = raw.opened().replica
    raw.cut()
    return told


def ended(target: str, owner: Owner, replica: str = "") -> str:
    """Resume a session and end it; the name of the replica that has had it."""
    raw = call(target, owner, owner.resume(0), replica)
    told: str = raw.opened().replica
    assert raw.close(0) == []
    raw.channel.close()
    return told


def is_elsewhere(target: str, owner: Owner) -> bool:
    """True if the replica to which a session's id alone leads does not have it."""
    raw = call(target, owner, owner.resume(0))
    try:
        raw.opened()
    except grpc.RpcError as error:
        return reason_of(error)[0] == "SESSION_NOT_FOUND"
    finally:
        raw.cut()
    return False


def refused(target: str, owner: Owner, replica: str = "") -> str:
    """The reason for which a session cannot be resumed."""
    raw = call(target, owner, owner.resume(0), replica)
    with pytest.raises(grpc.RpcError) as raised:
        raw.opened()
    raw.channel.close()
    return reason_of(raised.value)[0]


@PROXIES
def test_sessions_fall_on_all_replicas_and_each_is_found_again(proxied: Proxied, name: str) -> None:
    with proxied(name) as target:
        owners = [Owner() for _ in range(200)]
        places = [begun(target, owner) for owner in owners]
        shares = Counter(places)
        assert set(shares) == set(NAMES)
        assert min(shares.values()) >= 200 / 3 / 2, shares
        assert [ended(target, owner) for owner in owners] == places


@PROXIES
def test_a_client_that_names_a_replica_gets_that_one(proxied: Proxied, name: str) -> None:
    with proxied(name) as target:
        owners = [Owner() for _ in range(30)]
        places = [NAMES[at % 3] for at in range(30)]
        assert [begun(target, *each) for each in zip(owners, places, strict=True)] == places
        # By their ids alone some are looked for elsewhere.
        lost = [owner for owner in owners if is_elsewhere(target, owner)]
        assert 0 < len(lost) < 30
        assert [ended(target, *each) for each in zip(owners, places, strict=True)] == places
        # A name that the proxy does not know is passed over.
        owner = Owner()
        assert begun(target, owner, "nobody") == ended(target, owner)


@PROXIES
def test_the_sessions_of_a_killed_replica_begin_elsewhere_until_it_is_back(
    replicas: Replicas, proxied: Proxied, name: str, eventually: Eventually
) -> None:
    with proxied(name) as target:
        owners = [Owner() for _ in range(60)]
        places = {owner: begun(target, owner) for owner in owners}
        orphans = [owner for owner, place in places.items() if place == "b"]
        replicas.kill("b")
        assert {begun(target, owner) for owner in orphans} == {"a", "c"}
        # Without a store the session that it had is nowhere else.
        assert refused(target, orphans[0], "b") == "UNAVAILABLE"
        # Once Envoy knows, the others have more points each on its ring, and some ids lead to another one of them.
        for owner in set(owners) - set(orphans):
            assert ended(target, owner, places[owner]) == places[owner]
        replicas.begin("b").wait_until_up()
        assert eventually(lambda: begun(target, orphans[0]) == "b")


@PROXIES
def test_a_replica_that_drains_gets_no_new_sessions_and_refuses_none(
    replicas: Replicas, proxied: Proxied, name: str, eventually: Eventually
) -> None:
    with proxied(name) as target:
        owner = Owner()
        live = call(target, owner, owner.opening(first=1), "b")
        live.send(step(1))
        assert live.opened().replica == "b"
        assert replicas.agent("b") == b"ready up\n"
        server = replicas.servers["b"]
        server.ask_to_stop()
        others: set[str] = set()
        while not any(line["event"] == "draining" for line in server.log):
            others.add(begun(target, Owner()))
        assert "b" in others  # before the proxy has noticed
        assert {begun(target, Owner()) for _ in range(60)} == {"a", "c"}
        assert replicas.agent("b") == b"drain\n"
        live.send(step(2))
        assert [sums(live.reply()), sums(live.reply())] == [[1.0], [3.0]]
        assert live.close(2) == []
        live.channel.close()
        assert server.process.wait(60) == 0
        replicas.begin("b").wait_until_up()
        assert eventually(lambda: begun(target, Owner()) == "b")
