"""The store's records of sessions, and how long they last: two servers of this process, a real Valkey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamcell.client import connect
from streamcell.proto import pb
from streamcell.service.protocols.native.stored_sessions import StoredSessions
from tests.support.audit_lines import audit_lines
from tests.support.frames import FrameOwner, Frames
from tests.support.onnx_files import parsed, save
from tests.support.resumable import Owner, reason_of, step, sums
from tests.support.stored import Gate, Reading, Start, mutant, opened, stored, take_away
from tests.support.tokens import bearer, token_file
from tests.support.valkey import ValkeyServer
from tests.support.waiting import waited


@pytest.mark.parametrize("broken", [False, pytest.param(True, marks=mutant)])
def test_a_fork_is_in_the_store_before_it_is_told(
    start: Start, shared: ValkeyServer, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = start("store-async"), start("store-async", "b")
    owner, other = Owner(), Owner()
    raw = opened(a, owner)
    raw.send(step(1), step(2))
    raw.replies(2)
    if broken:
        monkeypatch.setattr(StoredSessions, "fork", lambda self, made, done: done(None))
    gate = Gate(a)  # nothing is written behind its back
    with gate.closed():
        raw.send(
            pb.StreamRequest(copy={"fork": {"session": other.session, "token": other.token, "window": 4}})
        )
        while not (reply := raw.reply()).HasField("copied"):
            pass
        assert not reply.copied.HasField("error")
        assert bool(shared.record(other.session)) is not broken
        if broken:
            return
        take_away(shared, other)
        fork = Reading(b, other.resume(0))
        about = fork.opened()
        assert (about.applied, about.step_index) == (0, 2)
        fork.send(step(10))
        assert sums(fork.outputs()) == [13]


def test_a_fork_that_is_asked_for_again_at_another_replica_is_the_same_one(
    start: Start, shared: ValkeyServer
) -> None:
    a, b = start("store-async"), start("store-async", "b")
    owner, other = Owner(), Owner()
    ask = pb.StreamRequest(copy={"fork": {"session": other.session, "token": other.token, "window": 4}})
    raw = opened(a, owner)
    raw.send(step(1))
    raw.reply()
    raw.send(ask, ask)
    assert [each.copied.HasField("error") for each in copies(raw, 2)] == [False, False]
    fork = Reading(a, other.resume(0))
    fork.opened()
    fork.send(step(1))
    fork.reply()
    assert waited(lambda: stored(a, owner)._durable == (1, 0))
    raw.cut()
    take_away(shared, owner)
    raw = Reading(b, owner.resume(1))
    raw.opened()
    raw.send(step(2), ask)
    assert [each.copied.HasField("error") for each in copies(raw, 1)] == [False]
    fork.send(step(4))
    assert sums(fork.outputs()) == [6]


def test_a_stream_is_read_and_ends_though_forks_of_the_one_before_it_are_answered_late(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Any] = []
    monkeypatch.setattr(StoredSessions, "fork", lambda self, made, done: late.append(done))
    a, owner = start("store-async"), Owner(window=1)
    raw = opened(a, owner)
    for _ in range(2):  # as many as a window of 1 lets through
        other = Owner()
        asked = {"session": other.session, "token": other.token, "window": 4}
        raw.send(pb.StreamRequest(copy={"fork": asked}))
    assert waited(lambda: len(late) == 2)
    raw.cut()
    again = opened(a, owner, resume=True)
    session = stored(a, owner)
    again.send(step(1))
    assert sums(again.outputs()) == [1]
    assert waited(lambda: session._durable_told == 1)  # nothing else is to come that could have it read
    late.pop()(None)
    again.send(step(2))
    assert sums(again.outputs()) == [3]
    again.send(pb.StreamRequest(received=2), None)
    stream = session._stream
    assert stream is not None
    assert waited(lambda: session._durable_told == 2 and stream.half_closed)
    late.pop()(None)
    assert again.end() is None


def copies(raw: Reading, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        reply = raw.reply()
        found += [reply] if reply.HasField("copied") else []
    return found


def test_a_restored_session_is_in_the_store_before_it_is_told(start: Start, shared: ValkeyServer) -> None:
    a, b = start("store-async"), start("store-async", "b")
    owner, other = Owner(), Owner()
    raw = opened(a, owner)
    raw.send(step(1), step(2), pb.StreamRequest(copy={"snapshot": True}))
    (snapshot,) = copies(raw, 1)
    with Gate(a).closed():
        restored = Reading(a, other.opening(snapshot=snapshot.copied.snapshot))
        assert restored.opened().step_index == 2
        take_away(shared, other)
        there = Reading(b, other.resume(0))
        assert there.opened().step_index == 2
        there.send(step(4))
        assert sums(there.outputs()) == [7]


@pytest.mark.parametrize("how", ["goodbye", "CloseSession", "linger", "refused"])
def test_a_session_that_has_ended_leaves_no_record(start: Start, shared: ValkeyServer, how: str) -> None:
    more: dict[str, Any] = {"linger_s": 0.5} if how == "linger" else {}
    server, owner = start("store-async", **more), Owner()
    raw = opened(server, owner)
    raw.send(step(1))
    raw.reply()
    assert shared.record(owner.session)
    if how == "goodbye":
        raw.send(pb.StreamRequest(received=1), None)
        assert raw.end() is None
    elif how == "linger":
        raw.cut()
    elif how == "CloseSession":
        server.host.sessions.close(owner.id, owner.token)
    else:
        raw.send(step(float("nan")))
    assert waited(lambda: not shared.record(owner.session))


def test_a_session_of_another_tenant_is_not_found(start: Start, shared: ValkeyServer) -> None:
    a, b, owner = start("store-async"), start("store-async", "b"), Owner()
    opened(a, owner).cut()
    take_away(shared, owner)
    other = b.host.scopes.of_tenant("other")
    b.host.scopes.of = lambda caller: other  # type: ignore[method-assign]
    assert reason_of(Reading(b, owner.resume(0)).end())[0] == "SESSION_NOT_FOUND"
    assert reason_of(Reading(b, owner.opening()).end())[0] == "SESSION_NOT_FOUND"


def test_the_audit_log_says_who_opened_a_stored_session_and_its_fork(start: Start, tmp_path: Path) -> None:
    log, tokens = tmp_path / "audit.log", token_file(tmp_path / "tokens.toml", ("acme", "feed"))
    server = start("store-async", token_file=tokens, audit_log=str(log))
    with connect(f"127.0.0.1:{server.port}", metadata=bearer("token-of-feed")) as client:
        with client.session("sum", resume=True) as session, session.fork() as fork:
            assert {session.durability, fork.durability} == {"store-async"}
        with client.session("sum", resume=True, durability="none") as session, session.fork():
            pass

    def told() -> list[tuple[str, str | None]]:
        return [(line["tenant"], line.get("by")) for line in audit_lines(log) if line["event"] == "opened"]

    assert waited(lambda: len(told()) == 4)
    assert {*told()} == {("acme", "feed")}


def test_a_session_that_does_not_fit_here_goes_on_where_it_does(start: Start, shared: ValkeyServer) -> None:
    a, owner = start("store-async"), Owner(window=8)
    small = start("store-async", "b", queue_messages=4)
    raw = opened(a, owner)
    raw.send(step(1))
    raw.reply()
    raw.cut()
    assert waited(lambda: stored(a, owner)._durable == (1, 0))
    reason, _, text = reason_of(Reading(small, owner.resume(1)).end())
    assert reason == "STORED_STATE_INVALID"
    assert "--queue-messages" in text
    raw = Reading(a, owner.resume(1))
    assert raw.opened().applied == 1
    raw.send(step(2))
    assert sums(raw.outputs()) == [3]


# Levels


def test_what_is_not_in_the_store_says_so(start: Start) -> None:
    server, owner = start("store-async"), Owner()
    reason, facts, text = Reading(server, owner.opening(durability=pb.DURABILITY_STORE_SYNC)).error()
    assert (reason, facts["has"]) == ("DURABILITY_UNSUPPORTED", str(pb.DURABILITY_STORE_ASYNC))
    reason, _, text = Reading(server, owner.opening(durability=pb.DURABILITY_PROCESS)).error()
    assert reason == "DURABILITY_UNSUPPORTED"
    assert "--journal-dir" in text


def test_streams_of_frames_and_stateless_models_are_in_no_store(
    folder: Path, start: Start, tmp_path: Path
) -> None:
    server = start("store-async")
    frames = Frames(f"127.0.0.1:{server.port}", FrameOwner().opening())
    assert frames.opened().durability == pb.DURABILITY_NONE
    frames = Frames(f"127.0.0.1:{server.port}", FrameOwner().opening(durability=pb.DURABILITY_STORE_ASYNC))
    reason, facts, text = frames.error()
    assert (reason, facts["has"]) == ("DURABILITY_UNSUPPORTED", str(pb.DURABILITY_NONE))
    assert "streams of frames" in text
    kept = start("store-async", "b", journal_dir=tmp_path)
    frames = Frames(f"127.0.0.1:{kept.port}", FrameOwner().opening())
    assert frames.opened().durability == pb.DURABILITY_PROCESS


COUNTS = (
    "(float[b, 1] x, int64[b, 1] n) => (float[b, 1] y, int64[b, 1] n_next)"
    "{ one = Constant<value = int64[1] {1}>() n_next = Add(n, one) z = Cast<to = 1>(n_next) y = Add(x, z) }"
)
COUNTS_SIDECAR = """
layout = "batch"
inputs = ["x"]
outputs = ["y"]
[[states]]
input = "n"
output = "n_next"
"""


def test_integer_states_come_only_from_a_store_that_is_encrypted(
    start: Start, shared: ValkeyServer, tmp_path: Path
) -> None:
    save(parsed(COUNTS), tmp_path / "counts.onnx", COUNTS_SIDECAR)
    keys = tmp_path / "keys"
    keys.write_text("11" * 32)
    open_store = start("store-async", models=tmp_path)
    assert Reading(open_store, Owner(model="counts").opening()).opened().durability == pb.DURABILITY_NONE
    asked = Owner(model="counts").opening(durability=pb.DURABILITY_STORE_ASYNC)
    assert Reading(open_store, asked).error()[0] == "DURABILITY_UNSUPPORTED"
    owner = Owner(model="counts")
    sealed = [start("store-async", name, models=tmp_path, store_key_file=keys) for name in ("b", "c")]
    raw = opened(sealed[0], owner)
    raw.send(step(1), step(1))
    assert [sums(raw.outputs()), sums(raw.outputs())] == [[2], [3]]
    assert waited(lambda: stored(sealed[0], owner)._durable == (2, 0))
    raw.cut()
    take_away(shared, owner)
    raw = Reading(sealed[1], owner.resume(2))
    assert raw.opened().durability == pb.DURABILITY_STORE_ASYNC
    raw.send(step(1))
    assert sums(raw.outputs()) == [4]
