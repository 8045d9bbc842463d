"""Resuming on the wire: what is applied, what is sent again, who may, and who is told what."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb, rpc
from tests.support.frames import FrameOwner, Frames
from tests.support.resumable import Owner, Raw, reason_of, step, sums
from tests.support.waiting import waited

CONFORMANCE = pytest.mark.conformance
States = Callable[[ServerProcess], dict[str, str]]
Eventually = Callable[[Callable[[], bool]], bool]


def detached(server: ServerProcess, owner: Owner, states: States, eventually: Eventually) -> None:
    assert eventually(lambda: states(server).get(owner.id) == "detached")


@CONFORMANCE
def test_a_broken_stream_leaves_a_detached_session_which_goes_on_with_what_its_client_lacks(
    server: ServerProcess, states: States, eventually: Eventually
) -> None:
    owner = Owner()
    raw = Raw(server.target, owner.opening())
    opened = raw.opened()
    assert (opened.session_id, opened.applied, opened.window, opened.linger_s) == (owner.id, 0, 4, 60.0)
    assert opened.durability == pb.DURABILITY_NONE
    # A chunk longer than a run, with a tag and a mode of its own: sent again it is the same, byte for byte.
    raw.send(step(1, tag=5), step(2, 3, 4, 5, 6, 7, tag=6, output_mode=pb.OUTPUT_MODE_LAST), step(8, tag=7))
    replies = raw.replies(3)
    assert [sums(reply) for reply in replies] == [[1], [28], [36]]
    raw.cut()
    detached(server, owner, states, eventually)
    again = Raw(server.target, owner.resume(1))
    opened = again.opened()
    assert (opened.applied, opened.step_index, opened.applied_steps) == (3, 8, 0)
    assert again.replies(2) == replies[1:]
    again.send(step(100, tag=8))
    assert sums(again.reply()) == [136]
    assert states(server)[owner.id] == "active"
    # A half-close alone does not end it: replies may be on their way, and a broken connection looks the same.
    assert again.half_close() == []
    detached(server, owner, states, eventually)
    again = Raw(server.target, owner.resume(4))
    assert again.opened().applied == 4
    assert again.close(4) == []
    assert eventually(lambda: owner.id not in states(server))
    assert Raw(server.target, owner.resume(4)).error()[0] == "SESSION_NOT_FOUND"


def test_a_usual_session_ends_with_its_stream_and_its_replies_have_no_new_field(
    server: ServerProcess, states: States, eventually: Eventually
) -> None:
    raw = Raw(server.target, pb.StreamRequest(open=pb.OpenSession(model="sum")), step(1))
    opened, reply = raw.opened(), raw.reply()
    assert (opened.window, opened.linger_s, opened.durability) == (0, 0, pb.DURABILITY_UNSPECIFIED)
    assert reply == pb.StreamResponse(outputs=reply.outputs, steps=1, step_index=1)
    raw.cut()
    assert eventually(lambda: opened.session_id not in states(server))


@CONFORMANCE
def test_a_stranger_learns_the_same_of_a_session_as_of_none(server: ServerProcess, states: States) -> None:
    owner, nobody = Owner(), Owner()
    raw = Raw(server.target, owner.opening(), step(1))
    raw.replies(2)
    told = []
    for asked in (owner, nobody):
        for token in (secrets.token_bytes(32), asked.token[:31] + bytes([asked.token[31] ^ 1])):
            opening = asked.resume(0, token=token, attempt=10**6)
            reason, facts, text = Raw(server.target, opening).error()
            told.append((reason, {**facts, "session_id": ""}, text.replace(asked.id, "")))
            with grpc.insecure_channel(server.target) as channel:
                close = rpc.StreamCellStub(channel).CloseSession  # type: ignore[no-untyped-call]
                with pytest.raises(grpc.RpcError) as caught:
                    close(pb.CloseSessionRequest(session_id=asked.id, token=token))
            reason, facts, text = reason_of(caught.value)
            told.append((reason, {**facts, "session_id": ""}, text.replace(asked.id, "")))
    assert {each[0] for each in told} == {"SESSION_NOT_FOUND"}
    assert len({str(each) for each in told}) == 1
    # Nor was the owner disturbed: neither its stream, nor its attempts.
    raw.send(step(2))
    assert sums(raw.reply()) == [3]
    raw.cut()
    assert Raw(server.target, owner.resume(2)).opened().applied == 2


def test_an_id_that_is_taken_cannot_be_created_with_another_token(server: ServerProcess) -> None:
    owner = Owner()
    Raw(server.target, owner.opening(), step(1)).replies(2)
    thief = Owner()
    thief.session = owner.session
    assert Raw(server.target, thief.opening()).error()[0] == "SESSION_NOT_FOUND"
    assert Raw(server.target, owner.resume(1)).opened().applied == 1


@CONFORMANCE
def test_only_the_token_closes_a_resumable_session(server: ServerProcess, states: States) -> None:
    owner = Owner()
    raw = Raw(server.target, owner.opening(), step(1))
    raw.replies(2)
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError):
            stub.CloseSession(pb.CloseSessionRequest(session_id=owner.id))
        request = pb.CloseSessionRequest(session_id=owner.id, token=owner.token)
        assert stub.CloseSession(request).step_index == 1
    assert raw.error()[0] == "SESSION_CLOSED"
    assert owner.id not in states(server)


@CONFORMANCE
def test_a_second_opening_takes_over_and_a_late_one_does_not(server: ServerProcess) -> None:
    owner = Owner()
    late = owner.opening()
    first = Raw(server.target, owner.opening(), step(1))
    first.replies(2)
    second = Raw(server.target, owner.resume(1))
    assert second.opened().applied == 1
    assert first.error()[0] == "SESSION_TAKEN_OVER"
    late.open.received = 1
    assert Raw(server.target, late).error()[0] == "SESSION_TAKEN_OVER"
    second.send(step(2))
    assert sums(second.reply()) == [3]


def test_an_opening_whose_reply_was_lost_is_sent_again(server: ServerProcess) -> None:
    owner = Owner()
    Raw(server.target, owner.opening()).opened()
    again = Raw(server.target, owner.opening(), step(1))
    assert again.opened().applied == 0
    assert sums(again.reply()) == [1]
    # With messages behind the opening the client says the first one's number: what is applied is skipped.
    third = Raw(server.target, owner.opening(first=1), step(1), step(2))
    assert third.opened().applied == 1
    assert [sums(reply) for reply in third.replies(2)] == [[1], [3]]


def test_a_client_that_cannot_send_what_the_session_lacks_is_told_so(server: ServerProcess) -> None:
    owner = Owner()
    Raw(server.target, owner.opening(), step(1)).replies(2)
    reason, facts, _ = Raw(server.target, owner.resume(3)).error()
    assert (reason, facts) == ("STATE_BEHIND", {"applied": "1", "held": "4"})
    # One that still holds its messages sends them again.
    again = Raw(server.target, owner.resume(3, held=2))
    assert again.opened().applied == 1
    again.send(step(2))
    assert sums(again.reply()) == [3]


def test_a_client_that_lacks_more_than_the_window_is_told_and_goes_on(server: ServerProcess) -> None:
    owner = Owner(window=2)
    raw = Raw(server.target, owner.opening())
    raw.opened()
    for x in (1, 2, 3):
        raw.send(step(x))
        raw.reply()
    reason, facts, _ = Raw(server.target, owner.resume(0, window=100)).error()
    assert (reason, facts) == ("REPLIES_GONE", {"applied": "3", "received": "0"})
    again = Raw(server.target, owner.resume(1, window=100))
    assert again.opened().window == 2
    assert [sums(reply) for reply in again.replies(2)] == [[3], [6]]
    again = Raw(server.target, owner.resume(3))
    assert again.opened().applied == 3


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"token": b"short"}, "MALFORMED_MESSAGE"),
        ({"session": b""}, "MALFORMED_MESSAGE"),
        ({"window": 0}, "MALFORMED_MESSAGE"),
        ({"attempt": 0}, "MALFORMED_MESSAGE"),
        ({"durability": pb.DURABILITY_PROCESS}, "DURABILITY_UNSUPPORTED"),
        ({"held": 2}, "SESSION_NOT_FOUND"),
        ({"first": 2}, "SESSION_NOT_FOUND"),
        ({"model": "none"}, "MODEL_NOT_FOUND"),
    ],
)
def test_an_opening_that_cannot_be_granted_opens_nothing(
    server: ServerProcess, states: States, fields: dict[str, Any], reason: str
) -> None:
    owner = Owner()
    assert Raw(server.target, owner.opening(**fields)).error()[0] == reason
    assert owner.id not in states(server)


def test_a_resumable_opening_carries_no_steps(server: ServerProcess) -> None:
    opening = Owner().opening()
    opening.inputs.append(step(1).inputs[0])
    assert Raw(server.target, opening).error()[0] == "MALFORMED_MESSAGE"


@CONFORMANCE
def test_a_refused_message_ends_the_session_and_not_that_of_who_took_it_over(server: ServerProcess) -> None:
    owner = Owner()
    first = Raw(server.target, owner.opening(), step(1))
    first.replies(2)
    second = Raw(server.target, owner.resume(1))
    second.opened()
    first.send(pb.StreamRequest(inputs=[b"abc"]))
    assert first.error()[0] == "SESSION_TAKEN_OVER"
    second.send(step(2))
    assert sums(second.reply()) == [3]
    second.send(pb.StreamRequest(inputs=[b"abc"]))
    assert second.error()[0] == "WRONG_BYTE_COUNT"
    assert Raw(server.target, owner.resume(2)).error()[0] == "SESSION_NOT_FOUND"


def test_detached_sessions_count_and_last_no_longer_than_they_may(
    start_server: Callable[..., ServerProcess], folder: Any, states: States, eventually: Eventually
) -> None:
    server = start_server(folder, "--max-sessions", "2", "--linger-s", "6", "--idle-timeout-s", "0.1")
    owners = [Owner(), Owner()]
    for owner in owners:
        raw = Raw(server.target, owner.opening())
        raw.opened()
        raw.cut()
    assert eventually(lambda: set(states(server).values()) == {"detached"})
    assert Raw(server.target, Owner().opening()).error()[0] == "SESSION_LIMIT"
    assert waited(lambda: server.metric("streamcell_sessions", state="detached") == 2)
    assert eventually(lambda: not states(server))
    assert Raw(server.target, owners[0].resume(0)).error()[0] == "SESSION_NOT_FOUND"
    assert Raw(server.target, Owner().opening()).opened().applied == 0
    assert waited(lambda: server.metric("streamcell_kept_reply_bytes") == 0)


def test_a_client_learns_which_replica_has_its_session(
    start_server: Callable[..., ServerProcess], folder: Any
) -> None:
    server = start_server(folder, "--replica", "b-2.local", "--advertise", "10.0.0.7:8500")
    frames = FrameOwner()
    for told in (
        Raw(server.target, Owner().opening()).opened(),
        Frames(server.target, frames.opening()).opened(),
        Frames(server.target, frames.resume(0)).opened(),
    ):
        assert (told.replica, told.address) == ("b-2.local", "10.0.0.7:8500")


def test_a_server_without_linger_time_refuses_resumable_sessions(
    start_server: Callable[..., ServerProcess], folder: Any
) -> None:
    server = start_server(folder, "--linger-s", "0")
    assert Raw(server.target, Owner().opening()).error()[0] == "DURABILITY_UNSUPPORTED"


def test_kept_replies_are_bounded_by_bytes_and_what_is_dropped_is_told(
    start_server: Callable[..., ServerProcess], folder: Any
) -> None:
    server = start_server(folder, "--kept-reply-bytes", "2000", "--max-kept-reply-bytes", "5000")
    owners = [Owner(window=30) for _ in range(4)]
    for owner in owners:
        raw = Raw(server.target, owner.opening())
        raw.opened()
        raw.send(*(step(*range(50)) for _ in range(20)))
        raw.replies(20)
        assert server.metric("streamcell_kept_reply_bytes") <= 5000
    assert server.metric("streamcell_kept_replies_dropped_total") > 40
    assert Raw(server.target, owners[3].resume(0)).error()[0] == "REPLIES_GONE"
    assert Raw(server.target, owners[3].resume(17)).opened().applied == 20
    assert waited(
        lambda: server.metric("streamcell_resumes_total", source="stream", result="replies_gone") == 1
    )
    assert waited(lambda: server.metric("streamcell_replies_resent_total") == 3)
