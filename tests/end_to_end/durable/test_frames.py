"""Streams of frames that can be resumed: all members go on together, and no frame is lost or applied twice."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamcell.client import Client, RowsRefused, SessionLimit, connect, connect_async
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb
from tests.support.cutting_proxy import TO_CLIENT, TO_SERVER, CuttingProxy, client_of
from tests.support.frames import FrameOwner, Frames, frame, full
from tests.support.reconnecting import APART_AT_ONCE
from tests.support.resumable import Owner, Raw, sums

WINDOW = 32  # what the server grants


def drive(client: Client) -> list[Any]:
    """Use a pool in every way; its outputs."""
    found: list[Any] = []
    with client.pool("sum", 3, resume=True) as pool:
        found.append(pool.step([[1.0], [2.0], [3.0]]).tolist())
        found.append(pool.run(full(1, 3, 9, 1), lengths=[9, 1, 5])[:, -1].tolist())
        found.append(pool.open_members(2).tolist())
        for x in (1.0, 2.0, 3.0, 4.0):
            pool.send([[x]] * 5)
        found += [pool.receive().tolist() for _ in range(4)]
        pool.close_members([1])
        pool.reset([0])
        with pytest.raises(RowsRefused) as refused:
            pool.step([[1.0], [float("nan")], [1.0], [1.0]])
        found.append(refused.value.outputs.tolist())
        found += [y.tolist() for y in pool.stream([[[x]] * 4 for x in range(5)], window=3)]
        found.append(pool.step_indices.tolist())
    return found


@pytest.fixture(scope="module")
def expected(server: ServerProcess) -> list[Any]:
    with connect(server.target) as client:
        return drive(client)


@pytest.mark.parametrize("direction", [TO_CLIENT, TO_SERVER])
def test_a_connection_may_break_at_any_byte(proxy: CuttingProxy, expected: list[Any], direction: str) -> None:
    with client_of(proxy) as client:
        assert drive(client) == expected
    whole = proxy.passed[direction]
    cuts = 0
    for place in range(60, whole, 43):  # before that HTTP/2 has not begun
        connections = proxy.connections
        with client_of(proxy) as client:
            proxy.cut_after(direction, place)
            assert drive(client) == expected, place
        cuts += proxy.connections - connections - 1
    assert cuts > 15


@pytest.mark.conformance
def test_connections_that_break_again_and_again_break_nothing(proxy: CuttingProxy) -> None:
    with (
        proxy.cutting() as answered,
        client_of(proxy) as client,
        client.pool("sum", 16, resume=True) as pool,
    ):
        sums = np.zeros((16, 1))
        for x in range(100):
            row = np.arange(16, dtype=np.float32)[:, None] + np.float32(x)
            sums += row
            np.testing.assert_array_equal(pool.step(row), sums)
            answered()
        for y in pool.stream(full(1, 16, 1) for _ in range(100)):
            sums += 1
            np.testing.assert_array_equal(y, sums)
            answered()
        assert pool.resumes


def test_an_asyncio_client_goes_on_as_well(proxy: CuttingProxy) -> None:
    async def run() -> None:
        async with (
            connect_async(proxy.target, options=APART_AT_ONCE) as client,
            client.pool("sum", 4, resume=True) as pool,
        ):
            sums = np.zeros((4, 1))
            for place in range(60):
                if place % 10 == 5:
                    proxy.cut()
                sums += place
                np.testing.assert_array_equal(await pool.step(full(place, 4, 1)), sums)
            assert pool.resumes == 6

    asyncio.run(run())


def test_members_that_cannot_be_opened_end_a_pool_with_their_error(server: ServerProcess) -> None:
    with connect(server.target) as client, pytest.raises(SessionLimit):
        client.pool("sum", 10**6, resume=True)


@pytest.mark.conformance
def test_a_second_opening_takes_over_and_replies_that_were_lost_come_again(server: ServerProcess) -> None:
    owner = FrameOwner()
    old = Frames(server.target, owner.opening(), frame(open_sessions=2), frame((0, 1), (1, 2)))
    assert old.reply().opened.window == 4
    assert len(old.reply().handles) == 8
    assert sums(old.reply()) == [1, 2]
    new = Frames(server.target, owner.resume(1))
    assert old.error()[0] == "SESSION_TAKEN_OVER"
    assert new.reply().opened.applied == 2
    assert sums(new.reply()) == [1, 2]
    new.send(frame((1, 2), (0, 1)))
    assert sums(new.reply()) == [4, 2]
    new.send(pb.FrameRequest(received=3))
    assert not new.half_close()
    assert Frames(server.target, owner.resume(3)).error()[0] == "SESSION_NOT_FOUND"


def test_frames_that_wait_and_frames_behind_the_opening_are_applied_once(server: ServerProcess) -> None:
    owner = FrameOwner(window=WINDOW)  # no more frames than replies are kept
    frames = [frame(open_sessions=1), *[frame((0, float(x))) for x in range(1, WINDOW)]]
    for received in range(0, WINDOW - 6, 6):
        opening = owner.resume(received, first=1) if received else owner.opening()
        stream = Frames(server.target, opening, *frames)
        for _ in range(7):  # the opening's and six more: what the next opening says to have
            stream.reply()
    new = Frames(server.target, owner.resume(0))
    applied = new.reply().opened.applied
    new.send(*frames[applied:])
    new.reply()
    assert [sums(new.reply())[0] for _ in range(WINDOW - 1)] == np.cumsum(range(1, WINDOW)).tolist()


def test_a_refused_row_is_remembered_over_a_resume(server: ServerProcess) -> None:
    """What the client sent ahead of the refusal is refused, on whichever stream it comes."""
    owner = FrameOwner()
    old = Frames(server.target, owner.opening(), frame(open_sessions=2))
    old.reply(), old.reply()
    bad, behind = frame((0, float("nan")), (1, 1), answered=1), frame((0, 5), (1, 5), answered=1)
    old.send(bad)
    assert [each.reason for each in old.reply().errors] == ["NON_FINITE_INPUT"]
    new = Frames(server.target, owner.resume(2))
    assert new.reply().opened.applied == 2
    new.send(behind)
    reply = new.reply()
    assert [each.reason for each in reply.errors] == ["SEQUENCE_GAP"]
    assert sums(reply) == [0, 6]


@pytest.mark.parametrize(
    ("opening", "reason"),
    [
        ({"token": b"short"}, "MALFORMED_MESSAGE"), ({"window": 0}, "MALFORMED_MESSAGE"),
        ({"attempt": 0}, "MALFORMED_MESSAGE"), ({"model": "nobody"}, "MODEL_NOT_FOUND"),
        ({"resume": True}, "SESSION_NOT_FOUND"), ({"received": 1}, "SESSION_NOT_FOUND"),
        ({"durability": pb.DURABILITY_PROCESS}, "DURABILITY_UNSUPPORTED"), ({"dtypes": ["int8"]}, "WRONG_DTYPE"),
    ],
)  # fmt: skip
def test_an_opening_that_cannot_be_taken_is_refused(
    server: ServerProcess, opening: dict[str, Any], reason: str
) -> None:
    assert Frames(server.target, FrameOwner().opening(**opening)).error()[0] == reason


def test_only_the_owner_and_only_the_right_method_reaches_a_stream(server: ServerProcess) -> None:
    owner, session = FrameOwner(), Owner()
    Frames(server.target, owner.opening()).reply()
    Raw(server.target, session.opening()).opened()
    right, owner.token = owner.token, secrets.token_bytes(32)
    assert Frames(server.target, owner.resume(0)).error()[0] == "SESSION_NOT_FOUND"
    session.session, session.token = owner.session, right
    assert Raw(server.target, session.resume(0)).error()[0] == "SESSION_NOT_FOUND"
    assert Raw(server.target, session.opening()).error()[0] == "SESSION_NOT_FOUND"
    owner.token = right
    opening = owner.resume(0)
    opening.open_sessions = 1
    assert Frames(server.target, opening).error()[0] == "MALFORMED_MESSAGE"
    assert Frames(server.target, owner.resume(0)).reply().opened.applied == 0


def test_a_detached_stream_lingers_and_then_ends(
    start_server: Callable[..., ServerProcess], folder: Any, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    server = start_server(folder, "--linger-s", "0.5")
    owner = FrameOwner()
    stream = Frames(server.target, owner.opening(), frame(open_sessions=3))
    stream.reply(), stream.reply()
    stream.cut()
    with connect(server.target) as client:
        assert eventually(lambda: not list(client.sessions()))
        assert eventually(lambda: client.model("sum").live_sessions == 0)
    assert Frames(server.target, owner.resume(0)).error()[0] == "SESSION_NOT_FOUND"
