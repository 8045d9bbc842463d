"""The Python clients on real servers that share a real Valkey: kills, a store that stops, a mutant of the client."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.client import Client, DeadlineExceeded, StateBehind, connect, connect_async
from streamcell.client.local_server import ServerProcess
from streamcell.client.protocol.held import HeldMessages
from tests.support.cutting_proxy import CuttingProxy
from tests.support.ports import free_port
from tests.support.reconnecting import APART_AT_ONCE
from tests.support.replicas import Replicas, kill, replicas
from tests.support.valkey import ValkeyServer, valkey

ROUNDS = 10
SESSIONS = 8  # of each kind of client
DIGITS = np.eye(4, dtype=np.float32)


@pytest.fixture(scope="module")
def store() -> Iterator[ValkeyServer]:
    with valkey() as made:
        yield made


class Pair:
    """Two servers of one store, each on its own port through all its lives."""

    def __init__(self, made: Replicas, store: ValkeyServer) -> None:
        self._made, self._store = made, store
        self._ports = [free_port(), free_port()]
        self.target = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        self.servers = [self._begin(place) for place in (0, 1)]

    def _begin(self, place: int) -> ServerProcess:
        port = str(self._ports[place])
        return self._made.begin("ab"[place], "--port", port, "--advertise", f"127.0.0.1:{port}")

    def up(self) -> Pair:
        """Start those that have ended, and wait until both serve."""
        for place, server in enumerate(self.servers):
            if server.process.poll() is not None:
                self.servers[place] = self._begin(place)
        for server in self.servers:
            server.wait_until_up()
        return self

    def _leases(self) -> list[bytes]:
        """The keys of both leases, which the store has for long."""
        return [self._store.call("KEYS", f"sc:l:{name}-*")[0] for name in "ab"]

    def again(self, place: int) -> None:
        """SIGKILL to one, and start it again; only then has its lease run out."""
        lease = self._leases()[place]
        kill(self.servers[place])
        self.up()
        assert self._store.call("DEL", lease) == 1

    def end(self, place: int) -> None:
        """SIGTERM to one; it moves its sessions, and ends."""
        self.servers[place].process.send_signal(signal.SIGTERM)
        assert self.servers[place].process.wait(60) == 0

    def owner_of(self, session: str) -> int:
        """Which one has a session."""
        for place, server in enumerate(self.servers):
            with connect(server.target) as client:
                if any(each.id == session for each in client.sessions()):
                    return place
        raise AssertionError("no server has the session")

    @contextmanager
    def without_store(self) -> Iterator[Callable[[str], None]]:
        """The store stands still while the block runs, or until the block has a session's server killed."""
        leases = self._leases()

        def lose(session: str) -> None:
            place = self.owner_of(session)
            kill(self.servers[place])
            os.kill(self._store.pid, signal.SIGCONT)
            assert self._store.call("DEL", leases[place]) == 1

        os.kill(self._store.pid, signal.SIGSTOP)
        try:
            yield lose
        finally:
            os.kill(self._store.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def both(folder: Path, store: ValkeyServer) -> Iterator[Pair]:
    with replicas(folder, store, "store-async", "--max-sessions", "64", "--lease-s", "30") as made:
        yield Pair(made, store)


@pytest.fixture
def pair(both: Pair) -> Pair:
    """All tests' servers; a test may leave one down."""
    return both.up()


def drive(client: Client, number: int, done: Callable[[int], None]) -> tuple[list[float], int]:
    """Step and generate; all outputs and choices, and how many messages were sent again."""
    found: list[float] = []
    with client.session("dice", resume=True, resume_s=60) as session:
        for place in range(ROUNDS):
            found += session.step(DIGITS[(number + place) % 4]).tolist()
            for y in session.stream(DIGITS[[0, 1, 2, 3, number % 4]], window=4):
                found += y.tolist()
            whole = session.generate(40, first=place % 4, temperature=1.0, seed=100 * number + place).all()
            found += [*np.ravel(whole.outputs).tolist(), *whole.chosen.tolist(), session.step_index]
            done(place)
        return found, session.resent


async def drive_async(client: Any, number: int, done: Callable[[int], None]) -> tuple[list[float], int]:
    """The same on asyncio."""
    found: list[float] = []
    async with client.session("dice", resume=True, resume_s=60) as session:
        for place in range(ROUNDS):
            found += (await session.step(DIGITS[(number + place) % 4])).tolist()
            async for y in session.stream(DIGITS[[0, 1, 2, 3, number % 4]], window=4):
                found += y.tolist()
            steps = session.generate(40, first=place % 4, temperature=1.0, seed=100 * number + place)
            whole = await steps.all()
            found += [*np.ravel(whole.outputs).tolist(), *whole.chosen.tolist(), session.step_index]
            await asyncio.to_thread(done, place)
        return found, session.resent


def drive_all(target: str, done: Callable[[int], None]) -> list[tuple[list[float], int]]:
    """All sessions at once, blocking ones and those on asyncio."""
    results: dict[int, tuple[list[float], int]] = {}
    numbers = range(SESSIONS)

    async def on_asyncio() -> None:
        async with connect_async(target, options=APART_AT_ONCE) as client:
            found = await asyncio.gather(*(drive_async(client, number, done) for number in numbers))
            results.update(zip((SESSIONS + number for number in numbers), found, strict=True))

    with connect(target, options=APART_AT_ONCE) as client:

        def blocking(number: int) -> None:
            results[number] = drive(client, number, done)

        threads = [threading.Thread(target=blocking, args=(number,)) for number in numbers]
        threads.append(threading.Thread(target=lambda: asyncio.run(on_asyncio())))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [results[number] for number in range(2 * SESSIONS)]


class Kills:
    """Kills one server after the other, in the middle of what all sessions do.

    Attributes:
        count: how often.
    """

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._rounds = threading.Semaphore(0)
        self._done = [threading.Event() for _ in range(ROUNDS // 3)]
        self.count = 0

    def done(self, place: int) -> None:
        """A session has done a round; every third one waits for the kill that came before it."""
        self._rounds.release()
        if place % 3 == 2:
            assert self._done[place // 3].wait(120)

    def run(self) -> None:
        """Kill each time that half of the rounds are done to which the sessions wait."""
        for done in self._done:
            for _ in range(3 * SESSIONS):
                self._rounds.acquire()
            self._pair.again(self.count % 2)
            self.count += 1
            done.set()
            for _ in range(3 * SESSIONS):
                self._rounds.acquire()


@pytest.fixture(scope="module")
def expected(both: Pair) -> list[tuple[list[float], int]]:
    """What all sessions show if nothing happens."""
    found = drive_all(both.up().target, lambda place: None)
    assert all(resent == 0 for _, resent in found)
    return found


def test_sessions_whose_servers_are_killed_show_what_they_show_without_kills(
    pair: Pair, expected: list[tuple[list[float], int]]
) -> None:
    kills = Kills(pair)
    killer = threading.Thread(target=kills.run)
    killer.start()
    found = drive_all(pair.target, kills.done)
    killer.join()
    assert [outputs for outputs, _ in found] == [outputs for outputs, _ in expected]
    assert kills.count == ROUNDS // 3


@contextmanager
def nothing_written(pair: Pair, client: Client, session: str) -> Iterator[Callable[[str], None]]:
    """As `Pair.without_store`; the session's server does not even begin to write what comes while the block runs.

    It has one write under way at a time, and that of another of its sessions is not answered. It is begun half a second
    after a step at the latest, or a little later on a busy machine.
    """
    beside = client.session("sum", resume=True)
    while pair.owner_of(beside.id) != pair.owner_of(session):
        beside.close()
        beside = client.session("sum", resume=True)
    with pair.without_store() as lose:
        begun_s = time.monotonic() + 2
        while time.monotonic() < begun_s:
            beside.step([0.0])
        yield lose
    beside.cancel()


def behind(pair: Pair, client: Client) -> Any:
    """A session with three steps that its killed server could not bring to the store."""
    session = client.session("sum", resume=True, resume_s=60)
    assert session.step([1.0]) == [1.0]
    while session.durable < 1:
        session.step([0.0])
    with nothing_written(pair, client, session.id) as lose:
        for _ in range(3):
            session.step([1.0])
        lose(session.id)
    return session


def test_what_the_store_lacks_is_sent_again_and_shown_once(pair: Pair) -> None:
    with connect(pair.target, options=APART_AT_ONCE) as client, behind(pair, client) as session:
        assert session.step([1.0]) == [5.0]
        assert session.resent >= 1
        assert session.durability == "store-async"


def test_a_client_that_keeps_nothing_above_what_it_has_received_is_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeldMessages, "forget", lambda held, kept: held.told.clear())
    with connect(pair.target, options=APART_AT_ONCE) as client:
        session = behind(pair, client)
        with pytest.raises(StateBehind):
            session.step([1.0])


def test_sending_waits_while_the_store_stands_still(pair: Pair, store: ValkeyServer) -> None:
    with connect(pair.target, options=APART_AT_ONCE, timeout_s=5) as client:
        session, other = (client.session("sum", resume=True, retain_bytes=500) for _ in range(2))
        session.step([1.0])
        other.step([1.0])
        with pair.without_store():
            step_often(session, 20)  # there is room for these
            with pytest.raises(DeadlineExceeded, match="the shared store has taken nothing for 5 s"):
                step_often(session, 100)
            timer = threading.Timer(1, os.kill, (store.pid, signal.SIGCONT))
            timer.start()
            step_often(other, 100)  # it waits, and then goes on
        timer.join()
        assert other.step([0.0]) == [101.0]
        other.close()


def test_a_generation_that_nobody_has_seeded_goes_on_with_the_choices_that_were_shown(pair: Pair) -> None:
    with (
        connect(pair.target, options=APART_AT_ONCE) as client,
        client.session("dice", resume=True, resume_s=60) as session,
    ):
        session.step(DIGITS[1])
        while session.durable < 1:
            session.step(DIGITS[1])
        before = session.step_index
        with nothing_written(pair, client, session.id) as lose:
            steps = session.generate(4000, first=2, temperature=5.0)
            shown = [next(steps) for _ in range(40)]
            lose(session.id)
        shown += list(steps)
        assert session.resent >= 1
        assert len(shown) == 4000
        assert session.step_index == before + 4000
        state = 0.0
        fed = [1] * before + [2, *(step.chosen for step in shown[:-1])]
        outputs = [None] * before + [step.output for step in shown]
        for place, (digit, y) in enumerate(zip(fed, outputs, strict=True)):
            state = (state * 31 + digit + 1) % 65521
            if y is not None:
                assert y.tolist() == [state * each % 13 / 4 for each in (3, 5, 7, 11)], place - before


def use(session: Any, snapshot: bytes, done: Callable[[], None]) -> list[Any]:
    """Send a message of each kind, and then some more; what they come to."""
    found: list[Any] = [session.step(DIGITS[3]).tolist()]
    found += [each.classes for each in session.beam_search(6, width=3, first=1)]
    session.restore(snapshot)
    found += session.run(DIGITS[[0, 2]]).tolist()
    found += session.generate(9, first=1, seed=5, temperature=2.0).all().chosen.tolist()
    session.restore(snapshot)
    for _ in range(40):  # more than the window
        found += session.step(DIGITS[1]).tolist()
    done()
    with session.fork() as fork:
        found += fork.step(DIGITS[2]).tolist()
    return [*found, session.step(DIGITS[2]).tolist(), session.step_index]


def test_every_kind_of_message_is_sent_again_to_a_server_that_lacks_it(pair: Pair) -> None:
    with connect(pair.target, options=APART_AT_ONCE) as client:
        session, other = (client.session("dice", resume=True, resume_s=60) for _ in range(2))
        for each in (session, other):
            each.step(DIGITS[1])
        snapshot = session.snapshot()
        expected = use(other, snapshot, lambda: None)
        with nothing_written(pair, client, session.id) as lose:
            assert use(session, snapshot, lambda: lose(session.id)) == expected
        assert session.resent >= 1
        session.close()


def test_a_server_that_ends_hands_its_sessions_over_without_an_error(
    pair: Pair, expected: list[tuple[list[float], int]]
) -> None:
    gone = threading.Event()
    rounds = threading.Semaphore(0)

    def done(place: int) -> None:
        rounds.release()
        if place == 7:
            assert gone.wait(120)

    def ending() -> None:
        for _ in range(4 * SESSIONS):
            rounds.acquire()
        pair.end(0)
        gone.set()

    ender = threading.Thread(target=ending)
    ender.start()
    found = drive_all(pair.target, done)
    ender.join()
    assert found == expected  # with nothing sent again


def test_a_session_leaves_the_proxy_for_the_address_that_its_server_tells(pair: Pair) -> None:
    with (
        CuttingProxy(pair.servers[0].target) as proxy,
        connect(proxy.target, direct=True) as client,
        client.session("sum", resume=True) as session,
    ):
        proxy.__exit__(None, None, None)
        for total in range(1, 6):
            assert session.step([1.0]) == [float(total)]
        assert session.resumes == 0


def step_often(session: Any, count: int) -> None:
    for _ in range(count):
        session.step([1.0])
