"""A call is not ended for a message that the server has not got round to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from streamcell.service.settings import Settings
from streamcell.service.transport.fast_lane import FastLane
from streamcell.service.transport.grpc_server import Transport
from tests.support.lanes import Echo, Feed

WAIT_S = 60


def test_a_message_that_waits_for_the_serving_thread_has_come_in_time(
    tmp_path: Path, eventually: Callable[[Callable[[], Any]], bool]
) -> None:
    held, go_on = threading.Event(), threading.Event()
    told: list[str] = []

    class Holding(Echo):
        """The message `wait` holds the thread up that serves."""

        def on_message(self, data: bytes) -> bool:
            if data == b"wait":
                held.set()
                go_on.wait(WAIT_S)
            return super().on_message(data)

    lane = FastLane()
    transport = Transport(
        Settings.load(models=tmp_path, port=0, first_message_s=3600.0),
        {"t": {"Stream": lane.stream(Holding)}},
        lane,
        lambda error: told.append(error.reason),
    )
    transport.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{transport.port}") as channel:
            method: Any = channel.stream_stream("/t/Stream")
            feed = Feed()
            slow = method(iter(feed), timeout=2 * WAIT_S)
            assert eventually(lambda: len(lane.first_messages) == 1)
            blocking = method(iter(Feed(b"wait")), timeout=2 * WAIT_S)
            assert held.wait(WAIT_S)
            feed.put(b"x")
            queue: Any = transport._grpc._state.completion_queue  # type: ignore[attr-defined]
            lane.first_messages.after_s = 0.4
            assert eventually(lambda: told or queue._probes)
            go_on.set()
            assert next(slow) == b"x"
            assert next(blocking) == b"wait"
            assert told == []
            # Whoever sends nothing is ended as ever.
            silent = method(iter(Feed()), timeout=2 * WAIT_S)
            assert silent.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert told == ["NO_MESSAGE"]
    finally:
        go_on.set()
        transport.stop()
