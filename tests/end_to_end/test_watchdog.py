"""Threads that hang: they are noticed, told of and, if so configured, ended; what only waits is left alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from streamcell.client import Client, StreamCellError, connect
from streamcell.client.local_server import ServerProcess
from streamcell.service import watchdog
from streamcell.service.transport.calls import ServerLane
from streamcell.service.transport.fast_lane import FastLane
from streamcell.service.transport.threaded_lane import ThreadedLane
from streamcell.service.watchdog import EXIT_CODE, Watchdog, stacks
from tests.support.waiting import waited

WAIT_S = 60.0
STEP = np.ones(3, np.float32)
Eventually = Callable[[Callable[[], bool]], bool]

# What makes a real server hang: while the file `engine` exists each run waits, and while `serving` does a health check.
# Runs are left to the engine thread.
HANG = """
import os, pathlib, sys, time
here = pathlib.Path(__file__).parent
def hang(name):
    while (here / name).exists():
        time.sleep(0.02)
if any("streamcell" in each for each in sys.orig_argv):
    from streamcell.service.engine import engine
    from streamcell.service.transport import health
    from streamcell.service.batching import inline
    run, status = engine.Engine.run, health.Health.status
    def held_run(self, staged):
        hang("engine")
        return run(self, staged)
    def held_check(self, request, caller):
        hang("serving")
        return health.health_pb2.HealthCheckResponse(status=status(self, request.service))
    def never_short(self, rows, cpu_s, read_apart):
        self.short = False
    engine.Engine.run, health.Health.check = held_run, held_check
    inline.InlinePolicy.ran = never_short
"""


class Hanging:
    """A server that can be made to hang."""

    def __init__(self, models: Path, folder: Path, frontends: int, *flags: str) -> None:
        (folder / "sitecustomize.py").write_text(HANG)
        self._folder = folder
        path = os.pathsep.join(each for each in (str(folder), os.environ.get("PYTHONPATH", "")) if each)
        environment = {"PYTHONPATH": path, "STREAMCELL_FRONTENDS": str(frontends)}
        self.server = ServerProcess(models, "--watchdog-s", "2", *flags, environment=environment)
        self.metric = self.server.metric

    def hang(self, what: str) -> None:
        (self._folder / what).touch()

    def go_on(self, what: str) -> None:
        (self._folder / what).unlink(missing_ok=True)

    def said(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.server.log if entry["event"] == event]

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.server.target, [("grpc.use_local_subchannel_pool", 1)])


Start = Callable[..., Hanging]


@pytest.fixture
def start(models_dir: Path, tmp_path: Path, frontends: int) -> Iterator[Start]:
    started: list[Hanging] = []

    def begin(*flags: str) -> Hanging:
        started.append(Hanging(models_dir, tmp_path, frontends, *flags))
        started[-1].server.wait_until_up()
        return started[-1]

    yield begin
    for each in started:
        for what in ("engine", "serving"):
            each.go_on(what)
        each.server.stop()


def check(channel: grpc.Channel, timeout: float = WAIT_S) -> int:
    status: int = (
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout).status
    )
    return status


def step(client: Client, model: str = "lstm") -> Any:
    with client.session(model) as session:
        return session.step(STEP)


def in_background(call: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        with contextlib.suppress(StreamCellError, grpc.RpcError):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.conformance
def test_an_engine_that_hangs_turns_readiness_off_until_it_goes_on(
    start: Start, eventually: Eventually
) -> None:
    hanging = start()
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with connect(hanging.server.target) as client, hanging.channel() as channel:
        step(client)
        assert check(channel) == serving
        hanging.hang("engine")
        thread = in_background(lambda: step(client))
        assert eventually(lambda: hanging.metric("streamcell_ready") == 0)
        assert eventually(lambda: check(channel) == not_serving)
        assert waited(lambda: hanging.metric("streamcell_stalls_total", thread="engine") == 1)
        assert waited(lambda: hanging.metric("streamcell_stalled_threads") == 1)
        assert eventually(lambda: len(hanging.said("no progress")) == 1)
        (entry,) = hanging.said("no progress")
        (name,) = entry["threads"]
        assert name.startswith("engine-lstm-")
        assert "held_run" in " ".join(entry["stacks"][name])
        hanging.go_on("engine")
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert eventually(lambda: hanging.metric("streamcell_ready") == 1)
        assert eventually(lambda: check(channel) == serving)
        assert waited(lambda: hanging.metric("streamcell_stalled_threads") == 0)
        step(client)


@pytest.mark.conformance
def test_a_serving_thread_that_hangs_is_told_of(start: Start, eventually: Eventually, frontends: int) -> None:
    hanging = start()
    kind = "frontend" if frontends else "serving"
    with hanging.channel() as channel:
        check(channel)
        hanging.hang("serving")
        thread = in_background(lambda: check(channel))
        assert eventually(lambda: hanging.metric("streamcell_stalls_total", thread=kind) == 1)
        assert waited(lambda: hanging.metric("streamcell_ready") == 0)
        assert eventually(lambda: len(hanging.said("no progress")) == 1)
        (entry,) = hanging.said("no progress")
        assert entry["threads"] == ["serving"]
        assert "held_check" in json.dumps(entry["stacks"])
        hanging.go_on("serving")
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert eventually(lambda: hanging.metric("streamcell_ready") == 1)
        assert check(channel) == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.conformance
def test_a_process_that_hangs_ends_if_told_to_for_its_supervisor_to_start_it_again(
    start: Start, eventually: Eventually, frontends: int
) -> None:
    hanging = start("--watchdog-exit")
    with connect(hanging.server.target) as client:
        step(client)
        hanging.hang("engine")
        thread = in_background(lambda: step(client))
        if not frontends:
            assert hanging.server.process.wait(WAIT_S) == EXIT_CODE
            hanging.server.stop()  # reads its log to the end
            assert hanging.said("no progress")[0]["ends"]
            return
        restarts = "streamcell_process_restarts_total"
        assert eventually(lambda: bool(hanging.said("process lost, restarting it")))
        assert hanging.said("process lost, restarting it")[0]["status"] == str(EXIT_CODE)
        hanging.go_on("engine")
        thread.join(WAIT_S)
        assert eventually(lambda: hanging.metric(restarts, kind="engine") >= 1)

        def works() -> bool:
            try:
                return step(client) is not None
            except StreamCellError:
                return False

        assert eventually(works)
        assert eventually(lambda: hanging.metric("streamcell_ready") == 1)


def test_a_process_that_was_stopped_and_goes_on_does_not_count_as_hanging(models_dir: Path) -> None:
    with ServerProcess(models_dir, "--watchdog-s", "2", "--watchdog-exit") as server:
        with connect(server.target) as client:
            step(client)
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(3)  # longer than a thread may make no progress
            server.process.send_signal(signal.SIGCONT)
            for _ in range(20):
                step(client)
        assert server.metric("streamcell_stalls_total") == 0
        assert server.process.poll() is None


@pytest.mark.parametrize("lane", [FastLane(), ThreadedLane()], ids=["fast", "threaded"])
def test_the_thread_of_an_idle_server_comes_by_on_both_lanes(
    lane: ServerLane, eventually: Eventually
) -> None:
    server = lane.server()
    assert lane.beats(server) == 0
    server.start()
    seen = [lane.beats(server) for _ in range(3)]
    assert eventually(lambda: lane.beats(server) not in seen)
    assert server.stop(0).wait(WAIT_S)


class Dog:
    """A watchdog whose passes are made by hand."""

    def __init__(self, after_s: float = 10.0, *, ends: bool = False) -> None:
        self.marks: dict[str, int | None] = {}
        self.told: list[tuple[str, bool]] = []
        self.ended: list[int] = []
        self.dog = Watchdog(
            lambda: self.marks,
            after_s,
            lambda *told: self.told.append(told),
            ends=ends,
            end=self.ended.append,
        )

    def passes(self, count: int, passed_s: float = 1.0) -> None:
        for _ in range(count):
            self.dog.look(passed_s)


def test_a_mark_that_stands_still_for_long_is_a_stall_and_one_that_changes_ends_it() -> None:
    dog = Dog()
    dog.marks = {"a": 1, "b": 1, "idle": None}
    for number in range(10):
        dog.marks["b"] = number
        dog.passes(1)
    assert dog.told == []
    dog.passes(1)
    assert dog.told == [("a", True)]
    dog.passes(20)
    assert dog.told == [("a", True), ("b", True)]
    dog.marks = {"a": 2, "b": None}
    dog.passes(1)
    assert dog.told[2:] == [("a", False), ("b", False)]
    assert dog.ended == []


def test_a_thread_that_goes_is_forgotten() -> None:
    dog = Dog()
    dog.marks = {"a": 1}
    dog.passes(9)
    dog.marks = {}
    dog.passes(1)
    dog.marks = {"a": 1}
    dog.passes(9)
    assert dog.told == []
    dog.passes(3)
    dog.marks = {}
    dog.passes(1)
    assert dog.told == [("a", True), ("a", False)]


def test_a_pass_that_comes_late_does_not_count() -> None:
    """What kept the watchdog from running kept the others: SIGSTOP, a machine without CPU to spare."""
    dog = Dog()
    dog.marks = {"a": 1}
    dog.passes(1)
    dog.passes(1, passed_s=3600.0)
    dog.passes(100, passed_s=2.5)
    assert dog.told == []
    dog.passes(10)
    assert dog.told == [("a", True)]


def test_a_watchdog_that_is_told_to_ends_the_process_though_the_log_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck = threading.Event()

    class Stuck:
        def error(self, event: str, **facts: Any) -> None:
            stuck.wait(WAIT_S)

    monkeypatch.setattr(watchdog, "_log", Stuck())
    dog = Dog(ends=True)
    dog.marks = {"a": 1}
    dog.passes(12)
    assert dog.told == [("a", True)]
    assert dog.ended == [EXIT_CODE]
    stuck.set()


def test_stacks_are_bounded() -> None:
    done = threading.Event()

    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            done.wait(WAIT_S)

    threads = [
        threading.Thread(target=deep, args=(100,), name=f"deep-{number}", daemon=True) for number in range(80)
    ]
    for thread in threads:
        thread.start()
    shown = stacks()
    done.set()
    for thread in threads:
        thread.join()
    assert 0 < len(shown) <= 64
    assert max(map(len, shown.values())) <= 40
    assert len(json.dumps(shown)) < 40_000


def test_without_a_time_nothing_is_watched() -> None:
    dog = Dog(after_s=0)
    dog.dog.start()
    assert dog.dog._thread.ident is None
