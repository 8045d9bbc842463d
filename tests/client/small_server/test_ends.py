"""How a blocking session ends: errors, time limits, cancellation, and a server that makes no sense."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from streamcell.client import (
    Client,
    DeadlineExceeded,
    MessageTooLarge,
    ProtocolMisuse,
    ServerFault,
    SessionExpired,
    StreamCellError,
    Unavailable,
    connect,
)
from streamcell.proto import pb

Fail = Callable[..., Callable[..., None]]
ONE = np.array([1, 2], np.float32)


def test_a_servers_typed_error_ends_the_session_and_is_raised_again(
    small: Any, fail: Fail, client: Client
) -> None:
    small.odd = fail("SESSION_EXPIRED", grpc.StatusCode.ABORTED, step_index="9")
    with client.session("sum") as session:
        with pytest.raises(SessionExpired) as caught:
            session.step(ONE)
        assert caught.value.reason == "SESSION_EXPIRED"
        assert caught.value.code is grpc.StatusCode.ABORTED
        assert caught.value.metadata == {"step_index": "9"}
        assert not session.alive
        with pytest.raises(SessionExpired) as again:
            session.step(ONE)
        assert again.value is not caught.value


def test_closing_raises_what_became_of_unanswered_messages(small: Any, fail: Fail, client: Client) -> None:
    small.odd = fail("ENGINE_FAILED", grpc.StatusCode.INTERNAL)
    session = client.session("sum")
    session.send(ONE)
    with pytest.raises(ServerFault) as caught:
        session.close()
    assert caught.value.reason == "ENGINE_FAILED"
    session.close()


def test_leaving_with_an_exception_cancels_at_once(small: Any, client: Client) -> None:
    small.hold.clear()

    def leave() -> None:
        with session:
            session.send(ONE)
            raise KeyError("mine")

    session = client.session("sum")
    with pytest.raises(KeyError):
        leave()
    assert not session.alive
    assert small.ended.wait(60)


def test_a_slow_reply_times_out_and_ends_the_session(small: Any, client: Client) -> None:
    with client.session("sum", timeout_s=2.5) as session:
        for _ in range(3):
            session.step(ONE)
        time.sleep(2.6)  # waiting for nothing is no wait
        session.step(ONE)
        small.hold.clear()
        with pytest.raises(DeadlineExceeded, match=r"no answer within 2\.5 s"):
            session.step(ONE)
        with pytest.raises(DeadlineExceeded):
            session.step(ONE)
    assert small.ended.wait(60)


def test_a_sessions_lifetime_is_a_grpc_deadline(small: Any, client: Client) -> None:
    small.hold.clear()
    with client.session("sum", lifetime_s=3) as session, pytest.raises(DeadlineExceeded) as caught:
        session.step(ONE)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_cancel_from_another_thread_ends_a_wait(small: Any, client: Client) -> None:
    small.hold.clear()
    with client.session("sum") as session:
        threading.Timer(0.2, session.cancel).start()
        with pytest.raises(StreamCellError) as caught:
            session.step(ONE)
        assert caught.value.code is grpc.StatusCode.CANCELLED


def test_replies_that_make_no_sense_are_the_servers_fault(small: Any, client: Client) -> None:
    for reply, text in (
        (pb.StreamResponse(outputs=[b"123"], steps=1), "8 bytes, the reply has 3"),
        (pb.StreamResponse(outputs=[b"", b""], steps=1), "expected 1 outputs, the reply has 2"),
    ):
        small.odd = lambda request, context, reply=reply: reply
        with client.session("sum") as session:
            with pytest.raises(ServerFault, match=text) as caught:
                session.step(ONE)
            assert caught.value.reason == "MALFORMED_REPLY"
            assert not session.alive
    with pytest.raises(ServerFault, match="'float8', which this client does not know"):
        client.session("future")


def test_a_stream_that_ends_without_an_answer_is_unavailable(small: Any, client: Client) -> None:
    small.leave = True
    with client.session("sum") as session, pytest.raises(Unavailable) as caught:
        session.step(ONE)
    assert caught.value.reason == "STREAM_ENDED"


def test_grpcs_own_message_limit_reads_as_ours(client: Client) -> None:
    with client.session("several") as session:
        session._exchange.opened.max_steps_per_message = 0  # a server that names no limit
        with pytest.raises(MessageTooLarge) as caught:
            session.run((np.zeros((20_000, 2, 3), np.uint8), np.zeros(20_000)))
        assert caught.value.reason == "MESSAGE_TOO_LARGE"


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with connect("127.0.0.1:1") as client:
        with pytest.raises(Unavailable):
            client.session("sum")
        with pytest.raises(Unavailable):
            client.models()
    with pytest.raises(ProtocolMisuse, match="is closed"):
        client.models()


def test_waiting_for_ready_lasts_as_long_as_the_timeout() -> None:
    with connect("127.0.0.1:1", wait_for_ready=True, timeout_s=0.3) as client:
        with pytest.raises(DeadlineExceeded):
            client.models()
        with pytest.raises(DeadlineExceeded):
            client.session("sum")


def _call_threads() -> set[threading.Thread]:
    """The threads that calls have while they are open: grpcio's, and the one of a stream that sessions share."""
    return {
        thread
        for thread in threading.enumerate()
        if thread.name.endswith("(_run)") or thread.name == "streamcell-frames"
    }


def test_a_session_left_open_warns_and_lets_its_thread_go(
    small: Any, client: Client, eventually: Any
) -> None:
    others = _call_threads()  # of a test that has failed, say
    client.session("sum").close()
    assert small.ended.wait(60)
    small.ended.clear()
    assert eventually(lambda: _call_threads() <= others)
    session = client.session("sum")
    assert _call_threads() - others
    with pytest.warns(ResourceWarning, match="unclosed session s1"):
        del session
    assert small.ended.wait(60)
    assert eventually(lambda: _call_threads() <= others)
