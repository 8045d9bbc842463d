"""The queue behind the fast lane's server: when it looks before it sleeps, and what it calls once it is idle."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from streamcell.benchmarks.targets.echo import Echo
from streamcell.service.transport.completion_queue import (
    ARRIVALS,
    ServingQueue,
    expect,
    no_longer_idle,
    once_idle,
)
from streamcell.service.transport.fast_lane import FastLane
from streamcell.service.transport.fast_stream import StreamCall

LONG_S = 3600.0


class DoingEcho(Echo):
    """Answers every message, first calling `doing`, if there is anything, on the serving thread."""

    doing: Callable[[Any, bytes], None] | None = None

    def on_message(self, data: bytes) -> bool:
        if DoingEcho.doing is not None:
            DoingEcho.doing(self.call, data)
        return super().on_message(data)


class Talk:
    """A stream to a server with such a queue, whose client waits for each answer."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.sent: queue.Queue[bytes | None] = queue.Queue()
        stream: Any = self.channel.stream_stream("/test/Stream")
        self.answers = stream(iter(self.sent.get, None), timeout=60)

    def step(self, data: bytes = b"x") -> None:
        self.sent.put(data)
        assert next(self.answers) == data

    def close(self) -> None:
        self.sent.put(None)
        assert list(self.answers) == []
        self.channel.close()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ServingQueue, int]]:
    monkeypatch.setattr(DoingEcho, "doing", None)
    server: Any = FastLane().server()
    methods = {"Stream": FastLane().stream(DoingEcho)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield server._state.completion_queue, port
    assert server.stop(0).wait(60)


def test_the_fast_lanes_servers_have_such_a_queue_and_no_other(served: tuple[ServingQueue, int]) -> None:
    assert isinstance(served[0], ServingQueue)
    other: Any = grpc.server(futures.ThreadPoolExecutor(1))
    assert not isinstance(other._state.completion_queue, ServingQueue)
    spins: Any = FastLane().server(spin_s=0.5)
    assert spins._state.completion_queue.spin_s == 0.5


def test_it_looks_after_two_short_sleeps_and_until_a_look_finds_nothing(
    served: tuple[ServingQueue, int], eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    found, port = served
    found.spin_s = LONG_S
    talk = Talk(port)

    def steps_until_it_looks() -> bool:
        talk.step()
        return found._looks

    DoingEcho.doing = lambda call, data: expect()
    # Not every step is waited for: its message may be there already.
    assert eventually(steps_until_it_looks)
    assert found._wanted == 2
    # The next look finds nothing: it sleeps, and has learnt.
    found.spin_s = 1e-3
    talk.step()
    assert eventually(lambda: not found._looks)
    assert found._wanted == 4
    found.spin_s = LONG_S
    for _ in range(3):
        talk.step()
    assert not found._looks
    assert eventually(steps_until_it_looks)
    talk.close()


def test_without_being_told_or_where_waits_are_long_it_sleeps(served: tuple[ServingQueue, int]) -> None:
    found, port = served
    talk = Talk(port)
    found.spin_s = LONG_S
    for _ in range(8):
        talk.step()
    assert not found._looks
    found.spin_s = 1e-9
    DoingEcho.doing = lambda call, data: expect()
    for _ in range(8):
        talk.step()
    assert not found._looks
    talk.close()


def test_once_idle_comes_when_nothing_else_does_and_only_there(served: tuple[ServingQueue, int]) -> None:
    called: queue.Queue[str] = queue.Queue()
    taken: list[bool] = []

    def put_off(call: StreamCall, data: bytes) -> None:
        taken.append(once_idle(lambda: called.put("first")))
        taken.append(once_idle(lambda: called.put("second")))

    talk = Talk(served[1])
    talk.step()
    DoingEcho.doing = put_off
    talk.step()
    assert called.get(timeout=60) == "first"
    DoingEcho.doing = None
    talk.step()
    assert taken == [True, False]
    assert called.empty()
    assert not once_idle(lambda: called.put("here")), "no queue is served on this thread"
    talk.close()


def test_what_waits_is_called_before_the_last_call_is_gone(served: tuple[ServingQueue, int]) -> None:
    called: list[str] = []

    def put_off(call: StreamCall, data: bytes) -> None:
        assert once_idle(lambda: called.append(data.decode()))
        no_longer_idle()
        assert called == [data.decode()]
        no_longer_idle()

    talk = Talk(served[1])
    talk.step()
    DoingEcho.doing = put_off
    talk.step(b"now")
    assert called == ["now"]
    talk.close()


def test_what_fails_once_idle_ends_no_call(
    served: tuple[ServingQueue, int], eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    failed: list[bool] = []

    def fail() -> None:
        failed.append(True)
        raise RuntimeError("on purpose")

    def put_off(call: StreamCall, data: bytes) -> None:
        once_idle(fail)  # False where the one before still waits

    talk = Talk(served[1])
    talk.step()
    DoingEcho.doing = put_off
    for _ in range(3):
        talk.step()
    talk.close()
    assert eventually(lambda: bool(failed))


def test_a_lone_client_that_pipelines_is_read_to_the_end_before_what_was_put_off(
    served: tuple[ServingQueue, int],
) -> None:
    """`Call.run_after_arrivals` waits for all messages that have arrived on the sockets, so they share a run."""
    order: list[bytes] = []
    called = threading.Event()

    def call_it() -> None:
        order.append(b"called")
        called.set()

    def note(call: StreamCall, data: bytes) -> None:
        order.append(data)
        if data == b"defer":
            assert call.run_after_arrivals(call_it)

    talk = Talk(served[1])
    talk.step()
    DoingEcho.doing = note
    before = ARRIVALS.messages
    for number in range(4):
        talk.sent.put(b"defer" if number == 0 else b"%d" % number)
    for _ in range(4):
        next(talk.answers)
    assert called.wait(60)  # a message that a fast client sends at once may be among the arrivals
    talk.step(b"last")
    assert ARRIVALS.messages - before == 5
    assert order.count(b"called") == 1
    assert order.index(b"called") < order.index(b"last")
    talk.close()


def test_a_thread_that_comes_by_shows_it_when_it_is_asked(served: tuple[ServingQueue, int]) -> None:
    """With a client that it looks for, with one that it sleeps for, and idle."""
    serving, port = served
    talk = Talk(port)
    for spin_s in (0.0, LONG_S):
        serving.spin_s = spin_s
        talk.step()
        for _ in range(50):
            before, asked = serving.beats, 0
            while serving.beats == before:  # an ask may get lost while the thread changes `poll` itself
                serving.ask()
                talk.step()
                asked += 1
                assert asked < 20
    talk.close()
    before = serving.ask()
    end_s = time.monotonic() + 60
    while serving.beats == before and time.monotonic() < end_s:  # idle: within a second or so
        serving.ask()
        time.sleep(0.05)
    assert serving.beats > before


def test_a_thread_that_hangs_does_not_come_by(
    served: tuple[ServingQueue, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, port = served
    talk = Talk(port)
    talk.step()
    held, go_on = threading.Event(), threading.Event()

    def hang(call: Any, data: bytes) -> None:
        held.set()
        go_on.wait(60)

    monkeypatch.setattr(DoingEcho, "doing", hang)
    talk.sent.put(b"y")
    assert held.wait(60)
    before = serving.ask()
    monkeypatch.setattr(DoingEcho, "doing", None)
    for _ in range(5):
        assert serving.ask() == before
    go_on.set()
    assert next(talk.answers) == b"y"
    talk.step()
    talk.step()
    assert serving.beats == before + 1
    talk.close()
