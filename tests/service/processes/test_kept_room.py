"""What a front end holds of a kept stream is little, whatever its client sends."""

from __future__ import annotations

from typing import Any

from streamcell.proto import pb
from tests.support.frames import FrameOwner
from tests.support.kept_streams import WINDOW, Client, Engines, received
from tests.support.resumable import Owner, step, sums


def test_of_an_opening_little_is_kept(engines: Engines) -> None:
    opening = Owner(WINDOW).opening(dtypes=["float32"])
    opening.open.MergeFromString(b"\xfa\x7f\x80\x40" + bytes(8192))  # a field that nobody knows
    client = Client(engines, opening)
    client.opened()
    assert client.stream._data == b""
    assert len(client.stream._resume()) < 256
    engines.again()
    client.send(step(1))
    assert sums(client.next()) == [1]


def test_what_has_no_reply_of_its_own_takes_no_room(engines: Engines) -> None:
    client = Client(engines, Owner(WINDOW).opening())
    client.opened()
    engines.lose()
    for _ in range(100):
        client.send(received(0), pb.StreamRequest(stop_generation=7))
    assert client.reading
    assert client.unanswered == len(client.stream._kept) == 0
    engines.begin()
    client.send(step(1))
    assert sums(client.next()) == [1]


def held_bytes(client: Any) -> int:
    """Bytes that the front end holds for a client's stream, beside its unanswered messages."""
    stream = client.stream
    return len(stream._told) + sum(len(each.stop) for each in stream._kept)


def test_what_has_no_reply_and_is_kept_is_small_whatever_a_client_pads_it_with(engines: Engines) -> None:
    padding = b"\xfa\x7f" + b"\x80\x80\x04" + bytes(1 << 16)  # unknown
    client = Client(engines, Owner(WINDOW).opening())
    client.opened()
    client.send(pb.StreamRequest(generate=pb.Generate(steps=100), inputs=step(1).inputs, tag=7))
    stream = client.stream
    for message in (received(0), pb.StreamRequest(stop_generation=7)):
        stream.on_message(message.SerializeToString() + padding)
    assert held_bytes(client) < 64
    frames = Client(engines, FrameOwner(WINDOW).opening())
    frames.opened()
    frames.stream.on_message(pb.FrameRequest(received=0).SerializeToString() + padding)
    assert 0 < held_bytes(frames) < 64


def test_a_stop_that_brings_inputs_is_refused_also_if_it_comes_in_a_pause(engines: Engines) -> None:
    client = Client(engines, Owner(WINDOW).opening())
    client.opened()
    engines.kill()
    client.stream.on_message(pb.StreamRequest(received=0, inputs=[bytes(1 << 16)]).SerializeToString())
    assert not held_bytes(client)
    engines.begin()
    assert client.ended() == "MALFORMED_MESSAGE"
