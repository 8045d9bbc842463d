"""Sessions in a shared store: two servers, one Valkey, all of them real."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import pytest

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb
from tests.support.replicas import Client, Replicas, kill, replicas
from tests.support.resumable import Owner, Raw, reason_of, step
from tests.support.valkey import ValkeyServer, valkey
from tests.support.waiting import waited

ASYNC, SYNC = pb.DURABILITY_STORE_ASYNC, pb.DURABILITY_STORE_SYNC


@pytest.fixture(scope="module")
def store() -> Iterator[ValkeyServer]:
    with valkey() as made:
        yield made


@pytest.fixture(scope="module")
def both(folder: Path, store: ValkeyServer) -> Iterator[Replicas]:
    """Has two servers for all tests, whose sessions may be at either level; a test may kill them."""
    with replicas(folder, store, "store-sync") as made:
        yield made


@pytest.fixture(scope="module")
def lasting(folder: Path, store: ValkeyServer) -> Iterator[Replicas]:
    """The same; nobody kills them, and no lease runs out."""
    with replicas(folder, store, "store-sync", "--lease-s", "30") as made:
        yield made


@pytest.fixture
def with_journals(folder: Path, store: ValkeyServer, tmp_path: Path) -> Iterator[Replicas]:
    with replicas(folder, store, "store-async", "--journal-dir", str(tmp_path)) as made:
        yield made


def test_a_killed_server_s_sessions_go_on_at_another(both: Replicas) -> None:
    a, b = both.pair()
    clients = [(level, Client()) for level in (ASYNC, SYNC)]
    for level, client in clients:
        assert client.open(a.target, durability=level).replica == both.name(a)
        client.step(1, 2, 3)
    kill(a)
    for level, client in clients:
        opened = client.open_once_free(b.target, durability=level)
        assert (opened.replica, opened.durability) == (both.name(b), level)
        client.step(4, 5)
        assert client.totals == [1, 3, 6, 10, 15]
        client.raw.close(5)


def test_a_server_that_was_stopped_beyond_its_lease_has_lost_its_sessions(both: Replicas) -> None:
    a, b = both.pair()

    def ended(**labels: str) -> float:
        return a.metric("streamcell_sessions_ended_total", **labels)

    before = ended(), ended(reason="closed")
    client = Client()
    client.open(a.target, durability=ASYNC)
    client.step(1, 2)
    client.wait_durable(2)
    old = client.raw
    a.process.send_signal(signal.SIGSTOP)
    client.send(4)  # it lies in the stopped server's socket
    client.open_once_free(b.target, durability=ASYNC)
    client.receive(3)
    client.step(8)
    a.process.send_signal(signal.SIGCONT)
    # It applies what it was sent and puts it, and the store does not take that.
    assert told_that_it_moved(old)
    client.step(16)
    assert client.totals == [1, 3, 7, 15, 31]
    # Back at the first one: what it had in memory does not count.
    client.raw.cut()
    assert client.open_once_free(a.target, durability=ASYNC).applied == 5
    client.step(32)
    assert waited(lambda: (ended() - before[0], ended(reason="closed") - before[1]) == (1, 0))


def told_that_it_moved(raw: Raw) -> bool:
    """Read a stream to its end: in the stream or by an error it is told that the session goes on elsewhere."""
    try:
        for reply in raw.call:
            if reply.HasField("moved"):
                return not raw.half_close()
    except grpc.RpcError as error:
        return reason_of(error)[0] == "SESSION_MOVED"
    return False


def test_a_store_that_stops_holds_up_durable_alone(lasting: Replicas, store: ValkeyServer) -> None:
    server, _ = lasting.pair()
    client = Client()
    client.open(server.target, durability=ASYNC)
    client.step(1, 2)
    client.wait_durable(2)
    os.kill(store.pid, signal.SIGSTOP)
    try:
        client.step(4, 8)
        assert client.durable == 2
    finally:
        os.kill(store.pid, signal.SIGCONT)
    client.wait_durable(4)
    client.step(16)


def test_a_store_that_stops_holds_up_replies_and_nothing_is_lost(
    lasting: Replicas, store: ValkeyServer
) -> None:
    server, other = lasting.pair()
    client = Client()
    client.open(server.target)
    client.step(1, 2)
    os.kill(store.pid, signal.SIGSTOP)
    try:
        client.send(4)
        reason, facts, _ = client.raw.error()
        assert (reason, facts["session_id"]) == ("STORE_UNAVAILABLE", client.owner.id)
    finally:
        os.kill(store.pid, signal.SIGCONT)
    opened = client.open_once_free(server.target)
    assert (opened.applied, opened.durable) == (3, 3)
    client.receive(3)
    client.step(8)
    client.raw.cut()
    client.open_once_free(other.target)  # given away at once: the first one lives
    assert client.step(16) == 31


def test_a_new_process_leaves_stored_sessions_to_the_store(with_journals: Replicas) -> None:
    first = with_journals.begin("a").wait_until_up()
    client, own = Client(), Owner()
    client.open(first.target)
    client.step(1, 2)
    client.wait_durable(2)
    raw = Raw(first.target, own.opening(durability=pb.DURABILITY_PROCESS))
    assert raw.opened().durability == pb.DURABILITY_PROCESS
    raw.send(step(1))
    raw.reply()
    kill(first)
    again = with_journals.begin("a").wait_until_up()
    assert Raw(again.target, own.resume(1)).opened().applied == 1
    with connect(again.target) as asking:
        assert [session.id for session in asking.sessions()] == [own.id]
    assert client.open_once_free(again.target).applied == 2
    client.step(4)


def test_a_generation_goes_on_at_its_step_with_the_same_choices(both: Replicas) -> None:
    a, b = both.pair()
    ask = pb.Generate(steps=200, feedback=pb.FEEDBACK_SAMPLE, seed=7, temperature=2.0)

    def told(raw: Raw, steps: int) -> bytes:
        """The choices, until there are so many."""
        chosen = b""
        while len(chosen) < 4 * steps:
            reply = raw.reply()
            chosen += reply.generated.chosen
            raw.send(pb.StreamRequest(received=0, received_steps=len(chosen) // 4 + begun))
        return chosen

    begun = 0
    raw = Raw(a.target, Owner(model="dice").opening(durability=ASYNC))
    raw.opened()
    raw.send(pb.StreamRequest(generate=ask))
    whole = told(raw, 200)

    owner = Owner(model="dice")
    raw = Raw(a.target, owner.opening(durability=ASYNC))
    raw.opened()
    raw.send(pb.StreamRequest(generate=ask))
    shown = told(raw, 70)
    kill(a)
    raw.cut()
    begun = len(shown) // 4
    opened = None
    while opened is None:
        raw = Raw(b.target, owner.resume(0, received_steps=begun, durability=ASYNC))
        with suppress(grpc.RpcError):  # until the lease of the other has run out
            opened = raw.opened()
    again = pb.StreamRequest(generate=ask)
    if opened.applied_steps < begun:  # what the client knows better
        again.outcome.steps, again.outcome.chosen, again.outcome.seed = begun, shown, 7
    raw.send(again)
    skipped = begun - min(opened.applied_steps, begun)
    chosen = told(raw, 200 - begun + skipped)
    assert chosen[: 4 * skipped] == shown[len(shown) - 4 * skipped :]
    assert shown + chosen[4 * skipped :] == whole


def test_a_server_waits_for_its_store_before_it_is_ready(folder: Path) -> None:
    with valkey() as store, replicas(folder, store, "store-async") as made:
        store.kill()
        server = made.begin("a").wait_until_up()
        assert ready(server) == 503
        assert Raw(server.target, Owner().opening()).error()[0] == "STORE_UNAVAILABLE"
        raw = Raw(server.target, Owner().opening(durability=pb.DURABILITY_NONE))
        assert raw.opened().durability == pb.DURABILITY_NONE
        store.start()
        while ready(server) != 200:
            pass
        assert Raw(server.target, Owner().opening()).opened().durability == pb.DURABILITY_STORE_ASYNC


def ready(server: ServerProcess) -> int:
    """What `/readyz` says."""
    try:
        with urlopen(server.metrics_url.replace("/metrics", "/readyz"), timeout=60) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
