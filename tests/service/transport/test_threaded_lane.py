"""The lane of threads on a machine that gives no more of them: calls fail or wait, and the server goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from streamcell.benchmarks.targets.echo import Echo
from streamcell.service.transport.threaded_lane import ThreadedLane
from tests.support.every_method import info_of

WAIT_S = 60.0


class Machine:
    """Gives no thread whose name begins with one of `refused`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused: tuple[str, ...] = ()
        self.asked = 0
        start = threading.Thread.start

        def limited(thread: threading.Thread) -> None:
            if thread.name.startswith(self.refused or ("none",)):
                self.asked += 1
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def channel(machine: Machine) -> Iterator[grpc.Channel]:
    lane = ThreadedLane()
    server = lane.server()
    methods = {"Stream": lane.stream(Echo), "Unary": lane.unary(lambda call, data: call.answer(data))}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel
    machine.refused = ()
    assert server.stop(0).wait(WAIT_S)


@pytest.mark.parametrize(
    ("refused", "fails", "works"),
    [("stream-reader", "/t/Stream", "/t/Unary"), ("call-reader", "/t/Unary", "/t/Stream")],
)
def test_a_call_whose_reader_cannot_be_started_fails_alone(
    machine: Machine, channel: grpc.Channel, refused: str, fails: str, works: str
) -> None:
    machine.refused = (refused,)
    call: Any = channel.stream_stream(fails)
    bad = call(iter([b"a"]), timeout=WAIT_S)
    with pytest.raises(grpc.RpcError):
        list(bad)
    assert bad.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info_of(bad).reason == "NO_THREAD"
    good: Any = channel.stream_stream(works)
    assert list(good(iter([b"a"]), timeout=WAIT_S)) == [b"a"]


def test_calls_wait_for_a_thread_if_there_is_no_more(machine: Machine, channel: grpc.Channel) -> None:
    unary: Any = channel.unary_unary("/t/Unary")
    assert unary(b"a", timeout=WAIT_S) == b"a"  # there is one thread now, held by the stream that follows
    go_on = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"b"
        go_on.wait(WAIT_S)

    method: Any = channel.stream_stream("/t/Stream")
    stream = method(requests(), timeout=WAIT_S)
    assert next(stream) == b"b"
    machine.refused = ("calls",)
    waiting = [unary.future(b"%d" % number, timeout=WAIT_S) for number in range(8)]
    go_on.set()
    assert list(stream) == []
    assert [each.result() for each in waiting] == [b"%d" % number for number in range(8)]
    assert machine.asked
