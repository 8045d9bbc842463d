"""What a blocking session gives, whatever the model takes, and that mistakes of one call stay with that call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from streamcell.client import (
    Client,
    InvalidInput,
    ProtocolMisuse,
    SessionClosed,
    connect,
)
from streamcell.proto import pb

ONE = np.array([1, 2], np.float32)


def test_a_session_sums_by_step_chunk_and_stream(client: Client) -> None:
    with client.session("sum") as session:
        np.testing.assert_array_equal(session.step(ONE), [1, 2])
        np.testing.assert_array_equal(session.run([[1, 0], [0.5, 0]]), [[2, 2], [2.5, 2]])
        assert session.step_index == 3
        items = [ONE, np.stack([ONE, ONE]), ONE]
        outputs = list(session.stream(items, window=2))
        assert [output.shape for output in outputs] == [(2,), (2, 2), (2,)]
        np.testing.assert_array_equal(outputs[-1], [6.5, 10])
        assert (session.id, session.model, session.version) == ("s1", "sum", "7")
        assert (session.max_steps, session.idle_timeout_s) == (4, 60)
        assert session.outputs[0].distribution == "real"
        assert session.step_index == 7
        outputs[-1][0] = 0  # a client's own array to write to


def test_several_inputs_go_by_name_or_in_order_and_outputs_come_by_name(client: Client) -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    with client.session("several") as session:
        by_name = session.step({"gain": 2.0, "image": image})
        in_order = session.step((image, 2))
        for outputs in (by_name, in_order):
            assert list(outputs) == ["total", "seen"]
            assert outputs["total"] == 30
            assert outputs["total"].shape == ()
            assert outputs["seen"].dtype == np.int64
        chunk = session.run({"image": np.stack([image, image]), "gain": [1.0, 3.0]})
        np.testing.assert_array_equal(chunk["total"], [15, 45])
        with pytest.raises(
            InvalidInput, match=r"2 inputs by name or in order \(image, gain\), got image"
        ) as caught:
            session.step({"image": image})
        assert caught.value.reason == "WRONG_INPUT_COUNT"
        with pytest.raises(InvalidInput, match="the leading shape of 'image'"):
            session.send({"image": image, "gain": [1.0]})
        with pytest.raises(InvalidInput, match="got one ndarray"):
            session.step(image)
        np.testing.assert_array_equal(session.step((image, 1.0))["seen"], image)  # none of it did harm


def test_output_modes_a_session_and_a_message(client: Client) -> None:
    chunk = np.ones((3, 2), np.float32)
    with client.session("sum", output="none") as session:
        assert session.run(chunk) is None
        assert session.step_index == 3
        assert session.run(chunk, output="last").shape == (1, 2)
        assert session.step(ONE, output="last").shape == (2,)
        with pytest.raises(InvalidInput, match="'all', 'last' or 'none', got 'first'"):
            session.step(ONE, output="first")  # type: ignore[arg-type]
        np.testing.assert_array_equal(session.step(ONE, output="all"), [8, 10])


def test_an_input_that_does_not_fit_is_never_sent(small: Any, client: Client) -> None:
    with client.session("sum") as session:
        for wrong, reason in (
            (ONE.astype(np.float64), "WRONG_DTYPE"),
            (np.ones(3, np.float32), "WRONG_SHAPE"),
            (np.ones((1, 2), np.float32), "WRONG_SHAPE"),
        ):
            with pytest.raises(InvalidInput) as caught:
                session.step(wrong)
            assert caught.value.reason == reason
        for wrong, reason in (
            (np.ones((5, 2), np.float32), "TOO_MANY_STEPS"),
            (np.ones((0, 2), np.float32), "NO_STEPS"),
        ):
            with pytest.raises(InvalidInput) as caught:
                session.run(wrong)
            assert caught.value.reason == reason
        assert session.alive
        np.testing.assert_array_equal(session.step(ONE), ONE)
    assert len(small.received) == 1


def test_a_streams_window_bounds_the_unanswered_messages(small: Any, client: Client) -> None:
    taken = []

    def source() -> Iterator[Any]:
        for _ in range(20):
            taken.append(session.pending)
            yield ONE

    with client.session("sum") as session:
        assert len(list(session.stream(source(), window=3))) == 20
        assert max(taken) == 2
        with pytest.raises(ValueError, match="at least 1, got 0"):
            next(session.stream([ONE], window=0))


def test_a_stream_left_early_leaves_the_session_in_step(client: Client) -> None:
    with client.session("sum") as session:
        for output in session.stream([ONE] * 9, window=4):
            assert output.shape == (2,)
            break
        assert session.pending == 0
        np.testing.assert_array_equal(session.step(ONE), 5 * ONE)


def test_a_source_that_fails_ends_the_stream_with_its_own_error(client: Client) -> None:
    def source() -> Iterator[Any]:
        yield ONE
        raise LookupError("no more coffee")

    with client.session("sum") as session:
        stream = session.stream(source())
        np.testing.assert_array_equal(next(stream), ONE)
        with pytest.raises(LookupError, match="coffee"):
            next(stream)
        np.testing.assert_array_equal(session.step(ONE), 2 * ONE)


def test_send_and_receive_keep_their_order_and_say_where_they_are_mixed_up(client: Client) -> None:
    with client.session("sum") as session:
        session.send(ONE)
        session.send(np.stack([ONE, ONE]))
        with pytest.raises(ProtocolMisuse, match="2 messages are unanswered"):
            session.step(ONE)
        assert session.receive().shape == (2,)
        assert session.receive().shape == (2, 2)
        with pytest.raises(ProtocolMisuse, match="no reply to receive"):
            session.receive()


def test_metadata_goes_with_every_call(small: Any) -> None:
    with (
        connect(small.target, metadata=(("who", "me"),)) as client,
        client.session("sum", metadata=(("why", "test"),)),
    ):
        assert {("who", "me"), ("why", "test")} <= {(key, value) for key, value in small.metadata}


def test_a_lazy_session_opens_with_its_first_use(small: Any, client: Client) -> None:
    sessions = [client.session("sum", lazy=True) for _ in range(4)]
    for session in sessions:
        np.testing.assert_array_equal(session.step(ONE), ONE)
    for session in sessions:
        session.close()
        with pytest.raises(SessionClosed):
            session.step(ONE)
    with client.session("sum", lazy=True) as unused:
        pass
    assert not unused.alive


def test_a_server_that_names_no_limit_gets_a_stream_for_each_session(small: Any) -> None:
    small.limit = 0
    with connect(small.target) as client, client.session("sum", multiplex=True) as session:
        np.testing.assert_array_equal(session.step(ONE), ONE)
        assert session._exchange._message is pb.StreamRequest
