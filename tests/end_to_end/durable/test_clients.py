"""Clients whose connections break anywhere: no output is lost, comes twice or is wrong, and the state shows it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamcell.client import (
    Client,
    ProtocolMisuse,
    RepliesGone,
    SessionNotFound,
    SessionTakenOver,
    Ticket,
    Unavailable,
    connect,
    connect_async,
)
from streamcell.client.local_server import ServerProcess
from tests.support.cutting_proxy import TO_CLIENT, TO_SERVER, CuttingProxy, client_of
from tests.support.reconnecting import APART_AT_ONCE

States = Callable[[ServerProcess], dict[str, str]]
Eventually = Callable[[Callable[[], bool]], bool]


def values(y: Any) -> list[float]:
    found: list[float] = np.ravel(y).tolist()
    return found


def drive(client: Client) -> list[float]:
    """Use a session in every way; its outputs."""
    found = []
    with client.session("sum", resume=True) as session:
        found += values(session.step([1.0]))
        found += values(session.run([[x] for x in range(9)]))
        for x in (2.0, 3.0, 4.0):
            session.send([x])
        found += [value for _ in range(3) for value in values(session.receive())]
        found += values(session.generate(5, first=[1.0]).all().outputs)
        found += [value for y in session.stream([[5.0], [6.0], [7.0]], window=2) for value in values(y)]
        assert session.step_index == 21
    return found


EXPECTED = [1, *np.cumsum(range(9)) + 1, 39, 42, 46, 47, 94, 188, 376, 752, 757, 763, 770]


@pytest.mark.parametrize("direction", [TO_CLIENT, TO_SERVER])
def test_a_connection_may_break_at_any_byte(proxy: CuttingProxy, direction: str) -> None:
    with client_of(proxy) as client:
        assert drive(client) == EXPECTED
    whole = proxy.passed[direction]
    cuts = 0
    for place in range(60, whole, 17):  # before that HTTP/2 has not begun
        connections = proxy.connections
        with client_of(proxy) as client:
            proxy.cut_after(direction, place)
            assert drive(client) == EXPECTED, place
        cuts += proxy.connections - connections - 1
    assert cuts > 30


def test_a_connection_may_break_at_any_byte_on_the_lane_of_threads(
    start_server: Callable[..., ServerProcess], folder: Any, states: States, eventually: Eventually
) -> None:
    server = start_server(folder, "--lane", "threaded")
    with CuttingProxy(server.target) as proxy:
        for place in range(60, 900, 31):
            with client_of(proxy) as client:
                proxy.cut_after(TO_CLIENT if place % 2 else TO_SERVER, place)
                assert drive(client) == EXPECTED, place
        assert proxy.connections > 40


@pytest.mark.conformance
def test_connections_that_break_again_and_again_break_nothing(proxy: CuttingProxy) -> None:
    with (
        proxy.cutting() as answered,
        client_of(proxy) as client,
        client.session("sum", resume=True) as session,
    ):
        sums = np.cumsum(np.arange(400.0))
        for x, y in zip(range(200), sums, strict=False):
            assert values(session.step([float(x)])) == [y]
            answered()
        found = []
        for y in session.stream([float(x)] for x in range(200, 400)):
            found += values(y)
            answered()
        assert found == sums[200:].tolist()
        assert session.resumes


def test_an_asyncio_client_goes_on_as_well(proxy: CuttingProxy) -> None:
    async def run() -> None:
        async with (
            connect_async(proxy.target, options=APART_AT_ONCE) as client,
            client.session("sum", resume=True) as session,
        ):
            sums = np.cumsum(np.arange(300.0))
            assert values(await session.step([0.0])) == [0.0]
            proxy.cut_after(TO_CLIENT, 300)
            place = 1
            async for y in session.stream(([float(x)] for x in range(1, 300)), window=100):
                assert values(y) == [sums[place]]
                place += 1
                if place % 40 == 0:
                    proxy.cut()
            assert place == 300
            assert session.resumes >= 7
            proxy.cut()
            generated = await session.generate(3, first=[1.0]).all()
            assert values(generated.outputs) == [sums[-1] + 1, 2 * (sums[-1] + 1), 4 * (sums[-1] + 1)]

    asyncio.run(run())


def test_a_long_generation_is_acknowledged_and_resumed(proxy: CuttingProxy) -> None:
    with client_of(proxy) as client, client.session("sum", resume=True) as session:
        steps = session.generate(120, first=[1.0])
        found = []
        for place, step in enumerate(steps):
            found += values(step.output)
            if place in (
                10,
                30,
                50,
            ):  # of 120 the server has sent 96 at most: so many it may without acknowledgement
                proxy.cut()
        assert found == [2.0**step for step in range(120)]
        assert session.resumes == 3


def test_a_generation_whose_loop_is_left_is_stopped_whatever_breaks(proxy: CuttingProxy) -> None:
    with client_of(proxy) as client, client.session("sum", resume=True) as session:
        for _ in session.generate(100, first=[1.0]):
            proxy.cut()
            break
        y = session.step([0.0])
        assert values(y) == [2.0 ** (session.step_index - 2)]


def test_more_may_be_sent_ahead_than_the_window_has_room_for(proxy: CuttingProxy) -> None:
    with client_of(proxy) as client, client.session("sum", resume=True) as session:
        for x in range(100):
            session.send([float(x)])
            if x in (40, 80):
                proxy.cut()
        assert session.ticket().received == 0
        found = [value for _ in range(100) for value in values(session.receive())]
        assert found == np.cumsum(np.arange(100.0)).tolist()
        assert session.ticket().received == 100


@pytest.mark.conformance
def test_a_ticket_goes_on_in_another_process(
    server: ServerProcess, proxy: CuttingProxy, states: States, eventually: Eventually
) -> None:
    with client_of(proxy) as first:
        session = first.session("sum", resume=True)
        session.step([1.0])
        ticket = Ticket.from_json(session.ticket().to_json())
        session.step([2.0])
        session.run([[3.0], [4.0]])
        session.cancel()
    assert eventually(lambda: states(server)[ticket.session] == "detached")
    with connect(server.target) as second, second.resume(ticket) as resumed:
        assert resumed.id == ticket.session
        assert resumed.step_index == 4
        # What the ticket does not count comes again, before anything else.
        with pytest.raises(ProtocolMisuse, match="2 messages are unanswered"):
            resumed.step([5.0])
        assert [values(resumed.receive()) for _ in range(resumed.pending)] == [[3], [6, 10]]
        assert values(resumed.step([5.0])) == [15]
        ticket = resumed.ticket()
    with connect(server.target) as third, pytest.raises(SessionNotFound):
        third.resume(ticket)


def test_a_ticket_of_a_running_generation_ends_it(server: ServerProcess) -> None:
    with connect(server.target, options=APART_AT_ONCE) as first:
        session = first.session("sum", resume=True)
        steps = session.generate(100, first=[1.0])
        for _ in range(3):
            next(steps)
        ticket = session.ticket()
        session.cancel()
        with first.resume(ticket) as resumed:
            y = values(resumed.step([0.0]))[0]
            assert y == 2.0 ** (resumed.step_index - 2)


def test_two_owners_of_a_ticket_take_the_session_from_each_other_once(server: ServerProcess) -> None:
    with connect(server.target) as client:
        old = client.session("sum", resume=True)
        old.step([1.0])
        with client.resume(old.ticket()) as new:
            with pytest.raises(SessionTakenOver):
                old.step([2.0])
            assert values(new.step([2.0])) == [3]


def test_an_old_ticket_says_how_to_go_on(server: ServerProcess) -> None:
    with connect(server.target) as client:
        session = client.session("sum", resume=True)
        ticket = session.ticket()
        for _ in range(40):
            session.step([1.0])
        with pytest.raises(RepliesGone) as gone:
            client.resume(ticket)
        session.cancel()
        later = replace(session.ticket(), received=int(gone.value.metadata["applied"]))
        with client.resume(later) as resumed:
            assert values(resumed.step([1.0])) == [41]


def test_only_a_ticket_closes_a_session_that_can_be_resumed(server: ServerProcess) -> None:
    with connect(server.target) as client:
        session = client.session("sum", resume=True)
        session.step([1.0])
        with pytest.raises(SessionNotFound):
            client.close_session(session.id)
        assert client.close_session(session.id, session.ticket()) == 1
        session.cancel()


def test_a_usual_session_has_no_ticket_and_is_not_resumed(proxy: CuttingProxy) -> None:
    with client_of(proxy) as client:
        session = client.session("sum")
        with pytest.raises(ProtocolMisuse, match="resume=True"):
            session.ticket()
        session.step([1.0])
        proxy.cut()
        with pytest.raises(Unavailable):
            session.step([1.0])
        assert session.resumes == 0


def test_a_client_gives_up_with_the_error_that_it_met(proxy: CuttingProxy) -> None:
    with client_of(proxy) as client, client.session("sum", resume=True, resume_s=0.2) as session:
        session.step([1.0])
        proxy.__exit__(None, None, None)
        with pytest.raises(Unavailable):
            session.step([1.0])
        with pytest.raises(Unavailable):
            session.step([1.0])


def test_a_refused_input_is_not_sent_again(server: ServerProcess) -> None:
    with connect(server.target) as client:
        session = client.session("sum", resume=True)
        with pytest.raises(ValueError, match="finite"):
            session.step([float("nan")])
        assert not session.alive


def test_a_server_that_was_stopped_keeps_what_lingers(
    start_server: Callable[..., ServerProcess], folder: Any, states: States, eventually: Eventually
) -> None:
    server = start_server(folder, "--linger-s", "5")
    with connect(server.target) as client:
        session = client.session("sum", resume=True)
        session.step([1.0])
        ticket = session.ticket()
        session.cancel()
        assert eventually(lambda: states(server).get(ticket.session) == "detached")
        os.kill(server.pid, signal.SIGSTOP)
        threading.Event().wait(6)  # longer than it may linger, but the server was not there
        os.kill(server.pid, signal.SIGCONT)
        with client.resume(ticket) as resumed:
            assert values(resumed.step([2.0])) == [3]


def test_a_half_dead_connection_needs_no_time_out(proxy: CuttingProxy) -> None:
    with client_of(proxy) as client:
        session = client.session("sum", resume=True)
        session.step([1.0])
        proxy.stall()
        with client_of(proxy) as other, other.resume(session.ticket()) as resumed:
            assert values(resumed.step([2.0])) == [3]
        session.cancel()
