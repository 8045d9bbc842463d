"""Sessions in a shared store move away when they should: two servers of this process, a real Valkey."""

from __future__ import annotations

import threading
from pathlib import Path

from streamcell.proto import pb
from tests.support.resumable import Owner, step, sums
from tests.support.stored import Reading, Start, ends_with_moved, opened, stored, waits_for_client
from tests.support.tokens import bearer, token_file
from tests.support.waiting import waited


def test_a_session_leaves_though_what_it_has_waited_for_went_down_with_its_stream(start: Start) -> None:
    owner, a, b = Owner(), start("store-async"), start("store-async", "b")
    raw, left = opened(a, owner), threading.Event()
    ask = pb.StreamRequest(inputs=step(0).inputs, generate=pb.Generate(steps=200), tag=3)
    raw.send(ask, step(1))
    session = stored(a, owner)
    told = waits_for_client(raw, session)
    assert waited(lambda: session._accepted == 2)
    assert session.move_away(left.set)
    assert not left.is_set()  # a generation goes on elsewhere, but a message behind it is answered first
    raw.cut()
    again = Reading(a, owner.resume(0, received_steps=told))
    ends_with_moved(again)
    assert left.wait(60)
    there = Reading(b, owner.resume(0, received_steps=told))
    assert there.opened().applied_steps == told
    there.send(ask, step(1))
    while not (reply := there.reply()).generated.stop_reason:
        if reply.step_index % 32 == 0:
            there.send(pb.StreamRequest(received=0, received_steps=reply.step_index))
    assert sums(there.outputs()) == [1.0]


def test_what_a_session_that_leaves_does_not_take_does_not_count_as_unanswered(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "policy").write_text("[tenants.acme]\nmax_bytes_in_flight = 1000\n")
    tokens = token_file(tmp_path / "tokens.toml", ("acme", "feed"))
    a = start("store-async", token_file=tokens, policy_file=tmp_path / "policy")
    owner = Owner()
    raw = Reading(a, owner.opening(), metadata=bearer("token-of-feed"))
    raw.opened()
    session = stored(a, owner)
    grant = a.host.scopes.of_tenant("acme").grant
    assert grant is not None
    session._leaving = True  # and its end is to come
    raw.send(step(1), step(2), step(3))
    stream = session._stream
    assert stream is not None
    assert waited(lambda: stream.next == 4 and not grant.in_flight.bytes)
    session._leave()
    ends_with_moved(raw)
