"""What a client does while the engine process behind its kept stream is away, and what it then gets."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from streamcell.service.durability.journal import Entry
from streamcell.service.processes.frontend.tunnel_calls import PassedStream
from streamcell.service.protocols.native.resumable import Resumable
from tests.support.frontends import Eventually
from tests.support.kept_streams import WINDOW, Client, Engines, received
from tests.support.resumable import Owner, step, sums


def test_a_client_in_the_middle_of_its_sending_goes_on_up_to_its_window(engines: Engines) -> None:
    client = Client(engines, Owner(WINDOW).opening())
    client.opened()
    client.send(step(1))
    assert sums(client.next()) == [1]
    engines.lose()
    sent = 0
    while client.reading:
        client.send(step(1))
        sent += 1
    # One beyond the window, as in the engine process, so that stops and `received` come through a full one.
    assert sent == WINDOW + 1 == client.unanswered
    engines.begin()
    assert [sums(client.next()) for _ in range(sent)] == [[2.0 + number] for number in range(sent)]
    assert client.resumed.wait(60)
    client.send(step(1))
    assert sums(client.next()) == [sent + 2]
    assert client.unanswered == 0


def test_a_client_that_waits_for_no_answer_is_resumed_like_any_other(engines: Engines) -> None:
    client = Client(engines, Owner(WINDOW).opening(first=1))
    client.send(step(1))
    client.opened()
    assert sums(client.next()) == [1]
    engines.lose()
    client.send(step(2), step(3))
    engines.begin()
    assert [sums(client.next()) for _ in range(2)] == [[3], [6]]
    assert client.unanswered == 0


def test_a_stream_that_is_half_closed_meanwhile_ends_with_all_its_replies(
    engines: Engines, eventually: Eventually
) -> None:
    owner = Owner(WINDOW)
    client = Client(engines, owner.opening())
    client.opened()
    client.send(step(1))
    client.next()
    engines.lose()
    client.send(step(2), step(3))
    client.stream.on_half_close()
    engines.begin()
    assert [sums(client.next()) for _ in range(2)] == [[3], [6]]
    assert client.ended() == ""
    # It has not said that it has them: the session waits for its owner.
    again = Client(engines, owner.resume(3))
    assert again.opened().applied == 3
    engines.lose()
    again.send(received(3))
    again.stream.on_half_close()
    engines.begin()
    assert again.ended() == ""
    assert eventually(lambda: not len(engines.host.sessions))


def test_what_a_client_said_it_has_is_said_again(engines: Engines, eventually: Eventually) -> None:
    client = Client(engines, Owner(WINDOW).opening())
    client.opened()
    client.send(step(1))
    client.next()
    client.send(received(1))
    engines.again()
    client.stream.on_half_close()
    assert client.ended() == ""
    assert eventually(lambda: not len(engines.host.sessions))


def test_a_stream_may_end_before_its_opening_has_been_sent_to_the_end(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    client, pass_on = Client(engines, Owner(WINDOW).opening()), PassedStream.on_message
    client.opened()
    engines.lose()
    client.send(received(0))
    client.stream.on_half_close()
    here = threading.current_thread()

    def slow(self: PassedStream, data: bytes) -> bool:
        room = pass_on(self, data)
        if threading.current_thread() is here:
            assert client.told_end.wait(60)
        return room

    monkeypatch.setattr(PassedStream, "on_message", slow)
    engines.begin()
    assert client.ended() == ""
    assert eventually(lambda: not len(engines.host.sessions))


def test_a_session_that_has_ended_as_its_process_died_ends_its_stream_in_order(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    close, closed = Entry.close, []

    def and_die(self: Entry) -> None:
        close(self)
        if not closed:
            closed.append(self)
            engines.kill()

    client = Client(engines, Owner(WINDOW).opening())
    client.opened()
    client.send(step(1))
    client.next()
    monkeypatch.setattr(Entry, "close", and_die)
    monkeypatch.setattr(Resumable, "finish_if_done", ends_first)
    client.send(received(1))
    client.stream.on_half_close()
    engines.wait_until_lost()
    assert client.waits
    engines.begin()
    assert client.ended() == ""


def ends_first(self: Resumable, stream: Any) -> None:
    """The session ends before its client is told."""
    if stream.half_closed:
        self._end("closed")
        stream.finish()


def test_a_client_that_goes_away_meanwhile_leaves_its_session(engines: Engines) -> None:
    owner = Owner(WINDOW)
    client = Client(engines, owner.opening())
    client.opened()
    client.send(step(1))
    client.next()
    engines.lose()
    client.send(step(2))
    assert engines.streams.waiting == 1
    client.leave()
    assert engines.streams.waiting == 0
    engines.begin()
    assert engines.host.sessions.attached == 0
    again = Client(engines, owner.resume(1))
    assert again.opened().applied == 1  # the second message was its client's alone
    again.send(step(2))
    assert sums(again.next()) == [3]
