"""What the fast lane relies on below grpcio's public surface: a release that changes it fails here by name."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import _server
from grpc._cython import cygrpc

from streamcell.service.transport import lane_choice
from streamcell.service.transport.calls import Call
from streamcell.service.transport.fast_lane import FastLane
from streamcell.service.transport.lane_choice import LaneError, check, choose_lane
from streamcell.service.transport.threaded_lane import ThreadedLane


def test_the_names_are_there() -> None:
    for owner, names in (
        (cygrpc, ("SendInitialMetadataOperation", "SendMessageOperation", "ReceiveMessageOperation")),
        (cygrpc, ("WriteFlag",)),
        (cygrpc, ("SendStatusFromServerOperation", "ReceiveCloseOnServerOperation", "StatusCode", "Server")),
        (
            _server,
            ("_REQUEST_CALL_TAG", "_ServerStage", "_GenericMethod", "_HandlerCallDetails", "_handle_call"),
        ),
    ):
        for name in names:
            assert hasattr(owner, name), f"grpcio {grpc.__version__} has no {owner.__name__}.{name}"


def test_a_call_that_the_lane_does_not_drive_is_set_up_by_grpcio() -> None:
    assert list(inspect.signature(_server._handle_call).parameters) == [
        "rpc_event", "method_with_handler", "interceptor_pipeline", "thread_pool", "concurrency_exceeded",
    ]  # fmt: skip
    server: Any = FastLane().server()
    for name in (
        "lock",
        "stage",
        "due",
        "rpc_states",
        "generic_handlers",
        "interceptor_pipeline",
        "thread_pool",
    ):
        assert hasattr(server._state, name), f"grpcio {grpc.__version__}: _ServerState has no {name}"


class FirstThen:
    """Calls `then` with the core's call at its first message, and ends it once that has called `done`."""

    def __init__(self, call: Call, then: Callable[[Any, Callable[[], None]], None]) -> None:
        self.call = call
        self.then = then

    def on_message(self, data: bytes) -> bool:
        self.then(self.call._call, self.call.end)  # type: ignore[attr-defined]
        return True

    def on_half_close(self) -> None: ...

    def on_end(self, cancelled: bool) -> None: ...


def serve_one_call(then: Callable[[Any, Callable[[], None]], None]) -> None:
    """Have a real server on the lane take one stream."""
    lane = FastLane()
    server = lane.server()
    handlers = {"Stream": lane.stream(lambda call: FirstThen(call, then))}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream: Any = channel.stream_stream("/test/Stream")
        assert list(stream(iter([b"x"]), timeout=60)) == []
    assert server.stop(0).wait(60)


def test_a_call_of_the_lane_takes_operations_and_needs_no_state_of_grpcio() -> None:
    seen: list[Any] = []

    def then(call: Any, done: Callable[[], None]) -> None:
        seen.append(call.start_server_batch)
        done()

    serve_one_call(then)
    assert len(seen) == 1


def test_a_batch_of_no_operations_comes_behind_what_has_arrived() -> None:
    order: list[str] = []

    def then(call: Any, done: Callable[[], None]) -> None:
        later = _later(order, "third", done)
        first = _later(order, "first", lambda: call.start_server_batch((), later))
        assert call.start_server_batch((), first) == cygrpc.CallError.ok
        assert call.start_server_batch((), _later(order, "second")) == cygrpc.CallError.ok
        assert order == []  # not at once

    # On the serving thread itself, which takes no tag meanwhile.
    serve_one_call(then)
    assert order == ["first", "second", "third"]


def _later(order: list[str], name: str, then: Callable[[], Any] = lambda: None) -> Callable[[Any], Any]:
    def tag(event: Any) -> Any:
        order.append(name)
        then()
        return None, ()

    return tag


def test_the_serving_thread_reads_the_sockets() -> None:
    """The core starts no reading threads of its own; it reads the wish when grpcio is imported."""
    code = (
        "from streamcell.service.transport.grpc_polling import read_on_serving_thread\n"
        "import os, sys\n"
        "assert 'grpc' not in sys.modules and 'GRPC_EXPERIMENTS' not in os.environ\n"
        "read_on_serving_thread()\n"
        "import grpc\n"
        "from concurrent import futures\n"
        "server = grpc.server(futures.ThreadPoolExecutor(1))\n"
        "server.add_insecure_port('127.0.0.1:0'); server.start()\n"
        "print(os.environ['GRPC_EXPERIMENTS'])\n"
        "server.stop(0).wait(5)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert ran.stdout.strip() == "-event_engine_listener"
    assert "experiment" not in ran.stderr.lower(), "this grpcio does not know the experiment any more"


def test_both_lanes_pass_the_check_made_at_start_up() -> None:
    check(FastLane())
    check(ThreadedLane())


def test_a_busy_machine_is_not_taken_for_a_grpcio_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = FastLane.stream

    def late(self: FastLane, open_: Any) -> Any:
        return stream(self, lambda call: (time.sleep(1.3), open_(call))[1])  # two streams are opened

    monkeypatch.setattr(FastLane, "stream", late)
    assert choose_lane("auto").name == "fast"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grpcio whose calls have lost what the fast lane needs."""

    def fails(self: FastLane, open_: Any) -> Any:
        raise AttributeError("'_Context' object has no attribute '_rpc_event'")

    monkeypatch.setattr(FastLane, "stream", fails)


@pytest.mark.usefixtures("broken")
def test_where_the_check_fails_threads_take_over_unless_the_fast_lane_was_asked_for() -> None:
    assert choose_lane("auto").name == "threaded"
    with pytest.raises(LaneError, match="_rpc_event"):
        choose_lane("fast")


def test_the_lane_can_be_chosen() -> None:
    assert choose_lane("auto").name == choose_lane("fast").name == "fast"
    assert choose_lane("threaded").name == "threaded"


def test_no_other_module_reaches_below_the_public_surface() -> None:
    folder = Path(lane_choice.__file__).parents[1]
    for path in folder.rglob("*.py"):
        if path.name not in ("fast_stream.py", "fast_unary.py", "new_calls.py", "completion_queue.py"):
            text = path.read_text()
            assert "cygrpc" not in text, path.name
            assert "from grpc import _" not in text, path.name
            assert re.search(r"grpc\._[a-z]", text) is None, path.name
            assert "_rpc_event" not in text, path.name
