"""Blocking and asyncio sessions in a shared store, against small replicas: kills, moves, bounds, direct connections."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from streamcell.client import (
    Client,
    DeadlineExceeded,
    InvalidInput,
    MessageTooLarge,
    Options,
    ProtocolMisuse,
    SessionMoved,
    StateBehind,
    StreamCellError,
    Unavailable,
    connect,
    connect_async,
)
from streamcell.client.lines import Lines
from streamcell.client.protocol.way import Way
from streamcell.proto import pb
from tests.client.stored.conftest import SmallServer
from tests.support.certificates import self_signed
from tests.support.cutting_proxy import CuttingProxy
from tests.support.reconnecting import APART_AT_ONCE
from tests.support.small_store import stepped

Servers = Callable[..., SmallServer]
ROUNDS = 12


class History:
    """What a session must show: its state after everything that was shown so far."""

    def __init__(self) -> None:
        self.state = self.steps = 0

    def stepped(self, x: int, y: Any) -> None:
        self.state = stepped(self.state, x)
        self.steps += 1
        assert np.ravel(y).tolist() == [self.state]

    def generated(self, first: int, whole: Any) -> None:
        x = first
        for y, chosen in zip(np.ravel(whole.outputs), whole.chosen, strict=True):
            self.stepped(x, y)
            x = int(chosen)


def drive(client: Client, done: Callable[[], None]) -> int:
    """Use a session in every way; how many messages were sent to a replica that lacked them."""
    history = History()
    with client.session("small", resume=True, durability="store-async") as session:
        for x in range(1, ROUNDS + 1):
            history.stepped(x, session.step([x]))
            for y, z in zip(session.stream([[z] for z in range(6)]), range(6), strict=True):
                history.stepped(z, y)
            history.generated(x, session.generate(70, first=np.array([x])).all())
            for z, y in zip((7, 8), session.run([[7], [8]]), strict=True):
                history.stepped(z, y)
            done()
        assert session.step_index == history.steps == ROUNDS * 79
        assert session.durability == "store-async"
        return session.resent


async def drive_async(client: Any, done: Callable[[], None]) -> int:
    """The same on asyncio."""
    history = History()
    async with client.session("small", resume=True) as session:
        for x in range(1, ROUNDS + 1):
            history.stepped(x, await session.step([x]))
            z = 0
            async for y in session.stream([z] for z in range(6)):
                history.stepped(z, y)
                z += 1
            history.generated(x, await session.generate(70, first=np.array([x])).all())
            for z, y in zip((7, 8), await session.run([[7], [8]]), strict=True):
                history.stepped(z, y)
            done()
        assert session.step_index == history.steps == ROUNDS * 79
        resent: int = session.resent
        return resent


class Killer:
    """Kills one of two servers and starts it again, the other one next, each time so many rounds are done."""

    def __init__(self, *servers: SmallServer) -> None:
        self._servers = servers
        self._done = threading.Semaphore(0)
        self._over = False
        self.kills = 0
        self._thread = threading.Thread(target=self._run)

    def done(self) -> None:
        """A session has done another round."""
        self._done.release()

    def _run(self) -> None:
        while True:
            for _ in range(8):
                self._done.acquire()
            if self._over:
                return
            victim = self._servers[self.kills % 2]
            victim.kill()
            victim.start()
            self.kills += 1

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._done.release(8)
        self._thread.join()


def test_blocking_sessions_show_one_history_while_their_replicas_are_killed(servers: Servers) -> None:
    one, two = servers(), servers()
    resent: list[int] = []
    with (
        connect(f"{one.target},{two.target}", options=APART_AT_ONCE) as client,
        Killer(one, two) as killer,
    ):
        threads = [
            threading.Thread(target=lambda: resent.append(drive(client, killer.done))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(resent) == 6
    assert killer.kills > 4
    assert sum(resent) > 0


def test_asyncio_sessions_show_one_history_while_their_replicas_are_killed(servers: Servers) -> None:
    one, two = servers(), servers()

    async def main() -> list[int]:
        async with connect_async(f"{one.target},{two.target}", options=APART_AT_ONCE) as client:
            return await asyncio.gather(*(drive_async(client, killer.done) for _ in range(6)))

    with Killer(one, two) as killer:
        resent = asyncio.run(main())
    assert killer.kills > 4
    assert sum(resent) > 0


def test_a_session_that_is_told_to_move_half_closes_and_goes_on_elsewhere(servers: Servers) -> None:
    one, two = servers(), servers()
    with (
        connect(f"{one.target},{two.target}", options=APART_AT_ONCE) as client,
        client.session("small", resume=True) as session,
    ):
        history = History()
        for x in range(8):
            for server in (one, two):
                server.moving = {bytes.fromhex(session.id)}
            history.stepped(x, session.step([x]))
        assert session.resumes >= 8
        assert session.resent == 0  # what moves was stored before
    assert set(one.ends + two.ends) == {"half-closed"}
    assert len(one.metadata) > 3
    assert len(two.metadata) > 3
    assert {each["streamcell-session"] for each in one.metadata} == {session.id}


def test_a_session_that_is_told_to_move_when_it_says_goodbye_ends_where_it_goes(servers: Servers) -> None:
    one, two = servers(), servers()

    async def closes() -> None:
        async with connect_async(f"{one.target},{two.target}", options=APART_AT_ONCE) as client:
            session = await client.session("small", resume=True).open()
            await session.step([1])
            for server in (one, two):
                server.moving = {bytes.fromhex(session.id)}
            await session.close()

    with connect(f"{one.target},{two.target}", options=APART_AT_ONCE) as client:
        session = client.session("small", resume=True)
        session.step([1])
        for server in (one, two):
            server.moving = {bytes.fromhex(session.id)}
        session.close()
    asyncio.run(closes())
    assert not one.store.images


def test_a_server_that_moves_its_sessions_in_a_loop_ends_them_with_that_error(servers: Servers) -> None:
    server = servers()

    async def endless() -> None:
        async with connect_async(server.target) as client:
            session = await client.session("small", resume=True, resume_s=0.5).open()
            with pytest.raises(SessionMoved):
                await session.step([1])
            assert not session.alive

    server.moving = None
    with connect(server.target) as client:
        session = client.session("small", resume=True, resume_s=0.5)
        with pytest.raises(SessionMoved):
            session.step([1])
        assert not session.alive
        assert session.resumes < 20
    asyncio.run(endless())


def step_often(session: Any) -> None:
    for _ in range(100):
        session.step([1])


def test_sending_waits_for_the_store_and_then_says_that_it_takes_nothing(servers: Servers) -> None:
    server = servers()
    server.puts = lambda: False

    async def waits() -> None:
        server.puts = lambda: False
        async with connect_async(server.target) as client:
            session = await client.session("small", resume=True, timeout_s=3, retain_bytes=200).open()
            with pytest.raises(DeadlineExceeded, match="store has taken nothing for 3 s"):
                async for _ in session.stream([x] for x in range(100)):
                    pass

    with connect(server.target) as client:
        session = client.session("small", resume=True, timeout_s=3, retain_bytes=200)
        with pytest.raises(MessageTooLarge, match="keeps at most 200 until its store has them"):
            session.run([[x] for x in range(30)])
        with pytest.raises(MessageTooLarge):
            session.generate(50, first=np.array([1]))
        with pytest.raises(DeadlineExceeded, match="store has taken nothing for 3 s"):
            step_often(session)
        answered = session.ticket().received
        assert 5 < answered < 20
        assert session.durable == 0
        ticket = session.ticket()
        with pytest.raises(StateBehind) as behind:  # the messages were here, and nowhere else
            client.resume(ticket)
        assert behind.value.metadata["received"] == str(answered)
        with client.resume(replace(ticket, received=0)) as again:
            assert again.step([5]).tolist() == [5]
        server.puts = lambda: True
        with client.session("small", resume=True, timeout_s=5, retain_bytes=200) as session:
            step_often(session)
            assert session.durable >= 90
    asyncio.run(waits())


def test_names_of_levels_are_checked_and_belong_to_sessions_that_can_be_resumed(servers: Servers) -> None:
    with connect(servers(level="store-sync").target) as client:
        with pytest.raises(
            InvalidInput, match="'process', 'store-async' or 'store-sync', got 'disk'"
        ) as wrong:
            client.session("small", resume=True, durability="disk")  # type: ignore[arg-type]
        assert wrong.value.reason == "WRONG_DURABILITY"
        with pytest.raises(ProtocolMisuse, match="resume=True"):
            client.session("small", durability="process")
        with client.session("small", resume=True, durability="store-sync") as session:
            session.step([1])
            assert (session.durability, session.durable) == ("store-sync", 1)


def test_a_usual_session_opens_at_the_first_target_that_can_be_reached(servers: Servers) -> None:
    one, two = servers(), servers()
    one.kill()

    async def opens() -> None:
        async with connect_async(f"{one.target},{two.target}") as client, client.session("small") as session:
            assert (await session.step([3])).tolist() == [3]

    for target in (f"{one.target},{two.target}", f"ipv4:{one.target},{two.target}"):
        with connect(target) as client, client.session("small") as session:
            assert session.step([3]).tolist() == [3]
    asyncio.run(opens())
    assert len(two.metadata) == 3
    assert "streamcell-session" not in two.metadata[0]


def test_a_session_goes_on_without_the_proxy_at_the_address_that_its_server_tells(servers: Servers) -> None:
    server = servers()
    server.address = server.target

    async def drives(target: str) -> None:
        async with connect_async(target, direct=True) as client:
            await drive_async(client, lambda: None)

    with CuttingProxy(server.target) as proxy:
        with connect(proxy.target) as client:
            drive(client, lambda: None)
        through = sum(proxy.passed.values())
        with connect(proxy.target, direct=True) as client:
            drive(client, lambda: None)
        asyncio.run(drives(proxy.target))
        assert sum(proxy.passed.values()) - through < through / 3


@pytest.mark.parametrize("kind", ["nobody listens", "nobody answers", "no address"])
def test_an_address_that_leads_nowhere_sends_a_session_back_to_the_proxy(servers: Servers, kind: str) -> None:
    server = servers()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server.address = {
            "nobody answers": f"127.0.0.1:{silent.getsockname()[1]}",
            "nobody listens": "127.0.0.1:1",
            "no address": "unix:/etc/passwd" * 1000,
        }[kind]

        async def steps() -> None:
            async with (
                connect_async(server.target, direct=True, timeout_s=3) as client,
                client.session("small", resume=True) as session,
            ):
                assert (await session.step([3])).tolist() == [3]

        with (
            connect(server.target, direct=True, timeout_s=3) as client,
            client.session("small", resume=True) as session,
        ):
            assert session.step([3]).tolist() == [3]
        asyncio.run(steps())


@pytest.mark.parametrize("names", [("localhost",), ("localhost", "127.0.0.1")])
def test_a_direct_connection_needs_a_certificate_that_names_the_address(
    servers: Servers, tmp_path: Path, names: tuple[str, ...]
) -> None:
    san = ",".join(f"{'IP' if each[0].isdigit() else 'DNS'}:{each}" for each in names)
    pair = self_signed(tmp_path, san=san)
    server = servers(tls=pair)
    server.address = server.target
    proxy = server.target.replace("127.0.0.1", "localhost")
    with (
        connect(proxy, tls=pair[0], direct=True, metadata=(("authorization", "Bearer x"),)) as client,
        client.session("small", resume=True) as session,
    ):
        assert session.step([3]).tolist() == [3]
        assert session.resumes == 0
    calls = len(
        server.metadata
    )  # the opening through the proxy, and the one that stayed: direct, or there again
    assert calls == 2
    assert [each["authorization"] for each in server.metadata] == ["Bearer x"] * 2
    assert len(server.peers) == 2
    assert (len(set(server.peers)) == 2) == (len(names) == 2)


def test_every_call_of_what_can_be_resumed_names_it(servers: Servers) -> None:
    server = servers(level="store-sync")
    with connect(server.target) as client:
        with client.session("small", resume=True) as session:
            client.close_session(session.id, replace(session.ticket(), replica="b"))
            ticket = session.ticket()
        with pytest.raises(StreamCellError):
            client.pool("small", 2, resume=True, resume_s=0)
        with pytest.raises(StreamCellError):
            client.pool("small", 2)
    opened, closed, pool, usual = (
        {key: value for key, value in each.items() if key.startswith("streamcell-")}
        for each in server.metadata
    )
    assert opened == {"streamcell-session": ticket.session}
    assert closed == {"streamcell-session": ticket.session, "streamcell-replica": "b"}
    assert len(pool["streamcell-session"]) == 32
    assert not usual


def test_calls_that_any_server_may_answer_go_to_one_that_can_be_reached(servers: Servers) -> None:
    one, two = servers(), servers()
    one.kill()
    target = f"{one.target},{two.target}"

    async def calls() -> None:
        async with connect_async(target) as client:
            assert await client.models() == []
            assert await client.models() == []

    with connect(target) as client:
        with pytest.raises(Unavailable):  # nobody knows whether a server that was cut off has done it
            client.close_session("00" * 16)
        assert client.models() == []
        assert client.close_session("00" * 16) == 1  # the client stays with the one that it has found
    asyncio.run(calls())
    assert len(two.metadata) == 4


def test_only_so_many_direct_connections_are_kept_and_those_in_use_are_not_closed() -> None:
    lines = Lines("proxy:1", Options(direct=True), grpc, lambda channel: channel)
    used = []
    for place in range(100):
        way = Way(bytes(16))
        way.moved(pb.Moved(address=f"10.0.0.{place}:8500"))
        way.set_out(lines.targets, direct=True)
        way.moved(pb.Moved(address=f"10.0.0.{place}:8500"))
        line = lines.of(way)
        assert bool(way.address) == (place < 10 or len(used) < 32)
        if place >= 10 and way.address:
            stream = Stream()
            line.streams.add(stream)
            used.append((stream, line))
    assert len(used) == 32
    assert len(lines.every()) == 1 + 32 + 10  # those to close are among them
    dropped = lines.dropped()
    assert len(dropped) == 10
    assert not set(map(id, dropped)) & {id(line.channel) for _, line in used}
    for channel in (*lines.every(), *dropped):
        channel.close()


class Stream:
    """What uses a connection."""
