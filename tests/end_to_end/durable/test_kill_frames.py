"""Streams of frames of servers killed with SIGKILL: all members together, no frame lost or doubled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb
from tests.support.frames import FrameOwner, Frames, frame, full
from tests.support.frontends import Eventually
from tests.support.kills import Checker, check_over_kills
from tests.support.life import Life
from tests.support.reconnecting import AT_ONCE
from tests.support.resumable import sums

KILLS = 3


@pytest.mark.conformance
def test_a_pool_goes_on_over_kills(life: Life) -> None:
    with (
        connect(life.target, options=AT_ONCE) as client,
        client.pool("sum", 8, resume=True) as pool,
    ):
        total = np.zeros(8)
        for x in range(5):
            total[::2] += x
            assert pool.step(full(x, 4, 1), [0, 2, 4, 6])[:, 0].tolist() == total[::2].tolist()
            total += 1
            assert pool.run(full(1, 8, 1, 1))[:, 0, 0].tolist() == total.tolist()
        life.again()
        pool.close_members([1, 3])
        pool.reset([0])
        life.again()
        assert pool.open_members(1).tolist() == [1]
        total[[0, 1]] = 0
        life.again()
        rest = [0, 1, 2, 4, 5, 6, 7]
        assert pool.step(full(1, 7, 1))[:, 0].tolist() == (total[rest] + 1).tolist()
        assert pool.resumes == 3


def test_forks_and_a_pool_that_was_put_back_go_on_over_a_kill(life: Life) -> None:
    with connect(life.target, options=AT_ONCE) as client, client.pool("sum", 3, resume=True) as pool:
        row = np.array([[1], [2], [3]], np.float32)
        assert pool.step(row)[:, 0].tolist() == [1, 2, 3]
        snapshot = pool.snapshot()
        assert pool.step(row)[:, 0].tolist() == [2, 4, 6]
        assert pool.fork([1]).tolist() == [3]
        life.again()
        assert pool.step(full(1, 4, 1))[:, 0].tolist() == [3, 5, 7, 5]
        pool.restore(snapshot)
        life.again()
        assert pool.members.tolist() == [0, 1, 2]
        assert pool.step(full(0, 3, 1))[:, 0].tolist() == [1, 2, 3]


class Client(Checker):
    """Sends frames of random members ahead, resumes for ever, and holds each output against the sums."""

    resumes = 0

    def check(self) -> None:
        with (
            connect(self.target, options=AT_ONCE) as client,
            client.pool("sum", 6, resume=True, resume_s=120) as pool,
        ):
            total, sent = np.zeros(64), []
            while not self.halt.is_set():
                while len(sent) < 6:
                    rows = sorted(self.random.sample(range(6), self.random.randint(1, 6)))
                    steps = self.random.randint(1, 9)
                    pool.send(full(1, len(rows), steps, 1), rows)
                    sent.append((rows, steps))
                rows, steps = sent.pop(0)
                y = pool.receive()
                total[rows] += steps
                assert y[:, -1, 0].tolist() == total[rows].tolist(), (y, total[rows])
                self.received += 1
            for rows, steps in sent:
                total[rows] += steps
                assert pool.receive()[:, -1, 0].tolist() == total[rows].tolist()
            assert pool.step(full(0, 6, 1))[:, 0].tolist() == total[:6].tolist()
            self.resumes = pool.resumes


def test_killed_servers_lose_no_frame_and_double_none(life: Life, eventually: Eventually) -> None:
    clients = [Client(life.target, seed) for seed in range(4)]
    check_over_kills(clients, life.again, KILLS, eventually, replies=4)
    assert all(client.resumes == KILLS for client in clients)


def test_replies_that_were_lost_come_again_and_refusals_are_remembered(life: Life) -> None:
    owner = FrameOwner()
    stream = Frames(life.target, owner.opening(durability=pb.DURABILITY_PROCESS), frame(open_sessions=3))
    assert stream.reply().opened.durability == pb.DURABILITY_PROCESS
    stream.reply()
    stream.send(frame((0, 1), (1, float("nan")), answered=1))
    first = stream.reply()
    assert [each.reason for each in first.errors] == ["NON_FINITE_INPUT"]
    life.again()
    stream = Frames(life.target, owner.resume(1))
    assert stream.reply().opened.applied == 2
    assert stream.reply() == first
    stream.send(frame((0, 2), (1, 5), (2, 5), answered=1))
    reply = stream.reply()
    assert [each.reason for each in reply.errors] == ["SEQUENCE_GAP"]
    assert sums(reply) == [3, 0, 5]


def test_more_streams_than_places_and_replies_without_room_are_told(
    start_server: Callable[..., ServerProcess], folder: Path, tmp_path: Path
) -> None:
    server = start_server(
        folder, "--durability", "process", "--journal-dir", str(tmp_path), "--max-sessions", "8",
        "--journal-frame-streams", "1", "--kept-reply-bytes", "4096",
    )  # fmt: skip
    process: dict[str, Any] = {"durability": pb.DURABILITY_PROCESS}
    mine = Frames(server.target, FrameOwner().opening(**process), frame(open_sessions=2))
    mine.reply(), mine.reply()
    assert Frames(server.target, FrameOwner().opening(**process)).error()[0] == "DURABILITY_UNSUPPORTED"
    other = Frames(server.target, FrameOwner().opening()).reply()
    assert other.opened.durability == pb.DURABILITY_NONE
    mine.send(pb.FrameRequest(handles=bytes(4), inputs=[bytes(4 * 300)]))
    assert mine.error()[0] == "MESSAGE_TOO_LARGE"
    assert Frames(server.target, FrameOwner().opening(**process)).reply().opened.window == 4
