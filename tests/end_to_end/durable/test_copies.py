"""Snapshots, forks and restores of real servers' sessions: each copy is the state at its place among the messages."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from streamcell.client import (
    InvalidInput,
    MessageTooLarge,
    ModelNotFound,
    ProtocolMisuse,
    SessionLimit,
    SnapshotRefused,
    connect,
    connect_async,
)
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb
from tests.support.audit_lines import audit_lines
from tests.support.cutting_proxy import TO_CLIENT, TO_SERVER, CuttingProxy, client_of
from tests.support.ports import free_port
from tests.support.resumable import Owner, Raw, save_sum, step, sums
from tests.support.waiting import waited

CONFORMANCE = pytest.mark.conformance
Serve = Callable[..., ServerProcess]
SNAPSHOT = pb.StateCopy(snapshot=True)


def copy(**kind: Any) -> pb.StreamRequest:
    return pb.StreamRequest(copy=pb.StateCopy(**kind), tag=9)


def fork_of(owner: Owner, **fields: Any) -> pb.StreamRequest:
    return copy(fork=pb.Fork(session=owner.session, token=owner.token, window=owner.window, **fields))


def begun(server: ServerProcess, *messages: pb.StreamRequest) -> tuple[Owner, Raw]:
    owner = Owner()
    raw = Raw(server.target, owner.opening())
    raw.opened()
    raw.send(*messages)
    return owner, raw


def refusal(reply: pb.StreamResponse) -> str:
    assert not reply.copied.snapshot
    return reply.copied.error.reason


@CONFORMANCE
def test_copies_are_of_the_state_at_their_place_among_the_messages(server: ServerProcess) -> None:
    forks = [Owner() for _ in range(2)]
    sent = (step(1), fork_of(forks[0]), step(2, 3), copy(snapshot=True), step(4), fork_of(forks[1]), step(8))
    _, raw = begun(server, *sent[:4])
    replies = raw.replies(4)
    raw.send(*sent[4:])
    replies += raw.replies(3)
    assert [sums(each) for each in replies] == [[1], [], [3, 6], [], [10], [], [18]]
    copies = [replies[at] for at in (1, 3, 5)]
    assert [(each.copied.applied, each.step_index, each.tag) for each in copies] == [
        (1, 1, 9),
        (2, 3, 9),
        (3, 4, 9),
    ]
    for owner, steps, total in zip(forks, (1, 4), (1, 10), strict=True):
        other = Raw(server.target, owner.resume(0))
        opened = other.opened()
        assert (opened.applied, opened.step_index) == (0, steps)
        other.send(step(100), step(100))
        assert [sums(each) for each in other.replies(2)] == [[total + 100], [total + 200]]
    restored = Raw(server.target, Owner(model="").opening(snapshot=copies[1].copied.snapshot))
    opened = restored.opened()
    assert (opened.model, opened.applied, opened.step_index, opened.window) == ("sum", 0, 3, 4)
    restored.send(step(100))
    assert (sums(reply := restored.reply()), reply.step_index) == ([106], 4)
    # None of that has touched the session that was copied.
    raw.send(step(1), copy(restore=copies[1].copied.snapshot))
    stepped, back = raw.replies(2)
    assert (sums(stepped), back.copied.applied, back.step_index) == ([19], 6, 3)
    raw.send(step(1))
    assert sums(raw.reply()) == [7]


@CONFORMANCE
def test_a_client_forks_snapshots_restores_and_rewinds(server: ServerProcess) -> None:
    with connect(server.target) as client:
        with client.session("sum", resume=True) as session:
            fresh = session.snapshot()
            assert session.run([[1.0], [2.0]]).tolist() == [[1], [3]]
            kept = session.snapshot()
            with session.fork() as fork:
                assert (fork.step_index, fork.resumes) == (2, 0)
                assert fork.id != session.id
                assert fork.step([10.0]).tolist() == [13]
                assert session.step([4.0]).tolist() == [7]
                assert fork.step([10.0]).tolist() == [23]
                with fork.fork() as second:
                    assert second.step([1.0]).tolist() == [24]
            session.restore(kept)
            assert session.step_index == 2
            assert session.step([5.0]).tolist() == [8]
            session.restore(fresh)
            assert (session.step_index, session.step([6.0]).tolist(), session.step_index) == (0, [6], 1)
            session.restore(kept)
            assert session.step([0.0]).tolist() == [3]
            assert [session.step([1.0]).tolist() for _ in range(40)] == [[4.0 + n] for n in range(40)]
        with client.restore(kept, output="last") as restored:
            assert (restored.model, restored.step_index) == ("sum", 2)
            assert restored.run([[1.0], [1.0]]).tolist() == [[5]]
        with client.restore(fresh) as restored:
            assert restored.step([1.0]).tolist() == [1]


async def _on_asyncio(target: str) -> list[list[float]]:
    async with connect_async(target) as client:
        async with client.session("sum", resume=True) as session:
            found = [await session.step([1.0])]
            kept = await session.snapshot()
            async with await session.fork() as fork:
                found += [await fork.step([2.0]), await session.step([4.0])]
            await session.restore(kept)
            found.append(await session.step([8.0]))
        async with client.restore(kept) as restored:
            found.append(await restored.step([16.0]))
        return [each.tolist() for each in found]


def test_the_asyncio_client_does_the_same(server: ServerProcess) -> None:
    assert asyncio.run(_on_asyncio(server.target)) == [[1], [3], [5], [9], [17]]


@CONFORMANCE
def test_a_session_that_ends_with_its_stream_cannot_be_copied(server: ServerProcess) -> None:
    raw = Raw(server.target, pb.StreamRequest(open=pb.OpenSession(model="sum")), copy(snapshot=True))
    assert raw.error()[0] == "NOT_RESUMABLE"
    with connect(server.target) as client, client.session("sum") as session:
        assert session.step([1.0]).tolist() == [1]
        for call in (session.snapshot, session.fork, lambda: session.restore(b"")):
            with pytest.raises(ProtocolMisuse) as caught:
                call()
            assert caught.value.reason == "NOT_RESUMABLE"
        assert session.step([1.0]).tolist() == [2]


def test_a_copy_that_makes_no_sense_ends_the_session_like_any_such_message(server: ServerProcess) -> None:
    for wrong in (
        pb.StreamRequest(copy=pb.StateCopy()),
        pb.StreamRequest(copy=SNAPSHOT, steps=1),
        copy(fork=pb.Fork(session=bytes(16), token=bytes(31), window=1)),
        copy(fork=pb.Fork(session=bytes(16), token=bytes(32))),
    ):
        _, raw = begun(server, wrong)
        assert raw.error()[0] == "MALFORMED_MESSAGE"


def test_a_refused_snapshot_leaves_the_session_as_it_was_and_a_wrong_opening_opens_none(
    server: ServerProcess, states: Callable[[ServerProcess], dict[str, str]]
) -> None:
    with connect(server.target) as client, client.session("sum", resume=True) as session:
        session.step([1.0])
        kept = session.snapshot()
        before = len(states(server))
        for at in range(len(kept)):
            damaged = kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :]
            with pytest.raises(SnapshotRefused):
                session.restore(damaged)
        for damaged in (b"", kept[:-1], kept + b"\0", kept[:20], bytes(len(kept))):
            with pytest.raises(SnapshotRefused):
                session.restore(damaged)
            if damaged:
                with pytest.raises(SnapshotRefused):
                    client.restore(damaged)
        with pytest.raises(ModelNotFound):
            client.restore(kept, "another")
        assert len(states(server)) == before
        assert session.step([1.0]).tolist() == [2]
        session.restore(kept)
        assert session.step([4.0]).tolist() == [5]


@CONFORMANCE
def test_a_refused_snapshot_is_told_whichever_process_reads_it(server: ServerProcess) -> None:
    _, raw = begun(server, step(1), copy(snapshot=True), copy(restore=b"none"))
    kept = raw.replies(3)
    assert refusal(kept[2]) == "SNAPSHOT_INVALID"
    raw.send(copy(restore=kept[1].copied.snapshot))
    assert refusal(raw.reply()) == ""
    for snapshot, model, reason in (
        (b"none", "", "SNAPSHOT_INVALID"),
        (kept[1].copied.snapshot, "another", "MODEL_NOT_FOUND"),
    ):
        assert Raw(server.target, Owner(model=model).opening(snapshot=snapshot)).error()[0] == reason
    with connect(server.target) as client, client.pool("sum", 1) as pool:
        with pytest.raises(SnapshotRefused) as caught:
            pool.restore(kept[1].copied.snapshot)
        assert caught.value.reason == "SNAPSHOT_MISMATCH"


def test_a_fork_asked_for_again_finds_the_one_that_is_there(server: ServerProcess) -> None:
    fork, stranger = Owner(), Owner()
    _, raw = begun(server, step(1), fork_of(fork), step(2), fork_of(fork))
    assert [refusal(each) for each in raw.replies(4)] == ["", "", "", ""]
    stranger.session = fork.session
    raw.send(fork_of(stranger), step(4))
    refused, after = raw.replies(2)
    assert (refusal(refused), sums(after)) == ("SESSION_NOT_FOUND", [7])
    other = Raw(server.target, fork.resume(0))
    assert other.opened().step_index == 1
    other.send(step(10))
    assert sums(other.reply()) == [11]


def test_a_fork_without_room_is_refused_and_the_session_goes_on_and_the_audit_log_tells_what_was_copied(
    start_server: Serve, folder: Path, tmp_path: Path
) -> None:
    server = start_server(folder, "--max-sessions", "2", "--audit-log", str(tmp_path / "audit.log"))
    with connect(server.target) as client, client.session("sum", resume=True) as session:
        session.step([1.0])
        with session.fork() as fork:
            for each in (session, fork):
                with pytest.raises(SessionLimit):
                    each.fork()
            assert fork.step([1.0]).tolist() == session.step([1.0]).tolist() == [2]
        with session.fork() as fork:
            assert fork.step([1.0]).tolist() == [3]
        kept = session.snapshot()
        session.restore(kept)
        with client.restore(kept) as restored:
            assert restored.step([1.0]).tolist() == [3]
    assert waited(lambda: server.metric("streamcell_state_copies_total", kind="fork") == 2)
    assert server.stop() == 0
    lines = audit_lines(tmp_path / "audit.log")
    told = [(line["kind"], line["session"], line["steps"]) for line in lines if line["event"] == "copied"]
    assert told == [
        ("fork", session.id, 1), ("fork", session.id, 2), ("snapshot", session.id, 2), ("rewind", session.id, 2),
        ("restore", restored.id, 2),
    ]  # fmt: skip


def test_a_snapshot_that_no_message_could_bring_back_is_refused(start_server: Serve, tmp_path: Path) -> None:
    from tests.support.onnx_files import parsed, save

    wide = "(float[b, 300] x, float[b, 300] h) => (float[b, 300] y, float[b, 300] n) { n = Add(x, h) y = Identity(n) }"
    sidecar = 'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n[[states]]\ninput = "h"\noutput = "n"\n'
    save(parsed(wide), tmp_path / "wide.onnx", sidecar)
    server = start_server(tmp_path, "--max-message-bytes", "1280")
    with connect(server.target) as client, client.session("wide", resume=True) as session:
        session.step(np.ones(300, np.float32))
        with pytest.raises(MessageTooLarge, match="--max-message-bytes"):
            session.snapshot()
        assert session.step(np.ones(300, np.float32)).tolist() == [2.0] * 300


def test_a_connection_that_breaks_anywhere_changes_nothing(proxy: CuttingProxy) -> None:
    def drive() -> list[float]:
        found = []
        with client_of(proxy) as client, client.session("sum", resume=True) as session:
            found.append(session.step([1.0]).item())
            kept = session.snapshot()
            found.append(session.step([2.0]).item())
            with session.fork() as fork:
                session.restore(kept)
                found += [session.step([4.0]).item(), fork.step([8.0]).item()]
        return found

    expected = [1, 3, 5, 11]
    assert drive() == expected
    passed = dict(proxy.passed)
    for direction in (TO_SERVER, TO_CLIENT):
        for count in range(40, passed[direction], 61):
            proxy.cut_after(direction, count)
            assert drive() == expected, (direction, count)


@pytest.fixture
def durable(start_server: Serve, tmp_path: Path) -> Callable[..., ServerProcess]:
    """A server on the test's journal and models."""
    models = save_sum(tmp_path / "models") if (tmp_path / "models").mkdir() is None else tmp_path
    port = free_port()

    def start(*flags: str) -> ServerProcess:
        journal = ("--durability", "process", "--journal-dir", str(tmp_path / "journal"))
        return start_server(models, "--port", str(port), "--max-sessions", "16", *journal, *flags)

    return start


def kill(server: ServerProcess) -> None:
    """SIGKILL to all its processes."""
    process = psutil.Process(server.pid)
    for each in [*process.children(recursive=True), process]:
        os.kill(each.pid, signal.SIGKILL)
    server.process.wait()


@CONFORMANCE
def test_a_server_killed_straight_after_the_reply_loses_no_copy(durable: Serve) -> None:
    server, idle, fork, restored = durable(), Owner(), Owner(), Owner()
    owner, raw = begun(server, fork_of(idle), copy(snapshot=True), step(1), step(2), copy(snapshot=True))
    replies = raw.replies(5)
    nothing, kept = replies[1].copied.snapshot, replies[4].copied.snapshot
    raw.send(fork_of(fork), step(30))
    assert [refusal(each) for each in raw.replies(2)] == ["", ""]
    other = Raw(server.target, restored.opening(snapshot=kept))
    assert other.opened().durability == pb.DURABILITY_PROCESS
    raw.send(copy(restore=kept))  # the other row has more timesteps
    assert raw.reply().step_index == 2
    kill(server)

    server = durable()
    found = [(owner, 4), (fork, 0), (idle, 0), (restored, 0)]
    streams = [Raw(server.target, each.resume(received)) for each, received in found]
    opened = [each.opened() for each in streams]
    assert [(each.applied, each.step_index) for each in opened] == [(4, 2), (0, 2), (0, 0), (0, 2)]
    for each, x in zip(streams, (10, 20, 40, 80), strict=True):
        each.send(step(x))
    assert [sums(each.reply()) for each in streams] == [[13], [23], [40], [83]]
    raw = streams[0]
    raw.send(copy(restore=nothing))
    assert raw.reply().step_index == 0
    raw.send(copy(restore=b"no snapshot"))
    assert refusal(raw.reply()) == "SNAPSHOT_INVALID"
    kill(server)

    server = durable()
    raw = Raw(server.target, owner.resume(6))
    opened_again = raw.opened()
    assert (opened_again.applied, opened_again.step_index) == (7, 0)
    assert refusal(raw.reply()) == "SNAPSHOT_INVALID"  # a refusal is a kept reply, like any other
    raw.send(step(5), step(5))
    assert [sums(each) for each in raw.replies(2)] == [[5], [10]]


def test_with_a_key_only_what_it_signed_is_restored(
    start_server: Serve, server: ServerProcess, folder: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_bytes(secrets.token_bytes(32))
    signing = [start_server(folder, "--snapshot-key-file", str(key)) for _ in range(2)]
    plain, made = server, {}
    for each in (signing[0], plain):
        with connect(each.target) as client, client.session("sum", resume=True) as session:
            session.step([1.0])
            made[each] = session.snapshot()
    with connect(signing[1].target) as client, client.restore(made[signing[0]]) as session:
        assert session.step([1.0]).tolist() == [2]
    for each, snapshot, remedy in (
        (signing[0], made[plain], "--snapshot-key-file"),
        (signing[1], made[signing[0]][:-1] + b"\0", "another key"),
        (plain, made[signing[0]], "--snapshot-key-file"),
    ):
        with connect(each.target) as client, pytest.raises(SnapshotRefused, match=remedy) as caught:
            client.restore(snapshot)
        assert caught.value.reason == "SNAPSHOT_INVALID"


def test_a_snapshot_of_another_file_is_refused(
    start_server: Serve, server: ServerProcess, tmp_path: Path
) -> None:
    save_sum(tmp_path)
    with (tmp_path / "sum.toml").open("a") as sidecar:
        sidecar.write("\n# another description\n")
    with connect(server.target) as client, client.session("sum", resume=True) as session:
        kept = session.snapshot()
    with connect(start_server(tmp_path).target) as client:
        with pytest.raises(SnapshotRefused, match="--versions all") as caught:
            client.restore(kept)
        assert caught.value.reason == "SNAPSHOT_MISMATCH"


def test_a_generation_goes_on_from_a_copy_as_it_would_have(server: ServerProcess) -> None:
    def three(session: Any) -> list[float]:
        return [each.output.item() for each in session.generate(3, from_output=True)]

    with connect(server.target) as client, client.session("sum", resume=True) as session:
        nothing = session.snapshot()
        session.step([1.0])
        kept = session.snapshot()
        with session.fork() as fork, client.restore(kept) as restored:
            assert three(session) == [2, 4, 8]
            assert three(fork) == three(restored) == [2, 4, 8]
        session.restore(kept)
        assert three(session) == [2, 4, 8]
        session.restore(nothing)
        with pytest.raises(InvalidInput, match="cannot generate yet"):
            three(session)
