"""Each request's share of its batches' time, by a clock that ticks: the parts are the whole, to the nanosecond."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.service.batching.batch_runner import BatchRunner
from streamcell.service.engine.device import Device
from streamcell.service.errors import ServiceError
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.metrics.request_metrics import RequestFigures
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.session import Output, Session, Work
from streamcell.service.settings import Settings
from tests.support.rings import Rig

TICK_NS = 1_953_125  # 1/512 s: no sum of them is rounded
MAX_BATCH, MAX_CHUNK = 4, 4
PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Clock:
    """Every reading is a tick later than the one before. Other threads, of other tests' servers, get the real time."""

    now_s: float = 1000.0
    thread: int = field(default_factory=threading.get_ident)
    real: Callable[[], float] = time.perf_counter

    def __call__(self) -> float:
        if threading.get_ident() != self.thread:
            return self.real()
        self.now_s += TICK_NS / 1e9
        return self.now_s


@dataclass
class Expected:
    """What the figures should say, from what a client and the engine see."""

    count: int = 0
    success_s: float = 0.0
    infer_s: float = 0.0
    runs: Counter[int] = field(default_factory=Counter)
    earlier_s: dict[object, float] = field(
        default_factory=dict
    )  # in the run, of requests that are not answered

    def check(self, figures: RequestFigures) -> None:
        assert figures.success.count == self.count
        assert figures.success.total_ns == round(self.success_s * 1e9)
        assert figures.compute_infer.total_ns == round(self.infer_s * 1e9)
        parts = [getattr(figures, name) for name in PARTS]
        assert {each.count for each in parts} == {self.count}
        assert sum(each.total_ns for each in parts) == figures.success.total_ns
        assert sum(each.total_us for each in parts) <= figures.success.total_us
        assert min(each.total_ns for each in parts) >= self.count * TICK_NS
        assert {each.rows: each.compute_infer.count for each in figures.batches} == self.runs
        assert figures.executions == self.runs.total()
        for each in figures.batches:
            assert each.compute_input.count == each.compute_output.count == each.compute_infer.count


class Noting:
    """A listener that knows when its answers left."""

    def __init__(self, clock: Clock, expected: Expected) -> None:
        self.clock, self.expected = clock, expected
        self.answered: list[Work] = []

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        if work.counted:
            self.expected.count += 1
            self.expected.success_s += self.clock.now_s - work.arrived_s
            self.answered.append(work)

    def resume(self) -> None: ...

    def fail(self, error: ServiceError) -> None:
        raise error


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Clock]:
    """Starts it, for the test's thread."""

    def start() -> Clock:
        ticking = Clock()
        monkeypatch.setattr(time, "perf_counter", ticking)
        return ticking

    return start


def timed(engine: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each run takes by the clock, filled as the engine runs.

    In each run the thread of the time limits looks once, which it does by the real time.
    """
    took: list[float] = []
    run = engine.run

    def timed_run(staged: Any) -> None:
        began_s = clock.now_s
        go = staged.go
        staged.go = lambda: (engine.limit.look(time.monotonic()), go())
        run(staged)
        staged.go = go
        clock.now_s += 3 * TICK_NS / 1e9
        took.append(clock.now_s + TICK_NS / 1e9 - began_s)  # with the tick of the reading behind it

    monkeypatch.setattr(engine, "run", timed_run)
    return took


@pytest.fixture
def model(models_dir: Path) -> Iterator[LoadedModel]:
    """One whose batches the test runs itself."""
    settings = Settings.load(models=models_dir, max_batch=MAX_BATCH, max_chunk=MAX_CHUNK)
    loaded = load(open_model(models_dir / "lstm.onnx", "lstm"), settings, Device())
    loaded.batcher.stop()
    loaded.runner._engine_thread.join()
    loaded.batcher._stopped = False
    yield loaded
    loaded.runner.stop()


@pytest.mark.parametrize("seed", range(8))
def test_random_messages_of_streams_and_calls(
    model: LoadedModel, clock: Callable[[], Clock], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    expected = Expected()
    ticking = clock()
    took = timed(model.engine, ticking, monkeypatch)
    batcher, metrics = model.batcher, model.metrics
    runner = BatchRunner(model.engine, batcher, metrics, None, allow_non_finite=False)
    listener = Noting(ticking, expected)
    sessions: list[Session] = []

    def something() -> bool:
        return any(not session.ended for session in batcher._batches.ready)

    def serve_one(*, interrupted: bool = False) -> None:
        batch = batcher.take()
        assert batch is not None
        expected.runs[len(batch.rows)] += 1
        if interrupted:  # a session of it ends while it runs, perhaps in the middle of a message
            session = batch.rows[0].session
            sessions.remove(session)
            batcher.end(session)
        works = [part.work for row in batch.rows for part in row.parts]
        runner.run(batch)
        for work in works:
            expected.earlier_s[work] = expected.earlier_s.get(work, 0.0) + took[-1]
        for work in listener.answered:
            expected.infer_s += expected.earlier_s.pop(work)
        listener.answered.clear()
        expected.check(metrics.request_figures())

    for _ in range(120):
        act = rng.integers(10)
        if act < 2 or not sessions:
            sessions.append(batcher.open(f"s{len(sessions)}", listener))
        elif act < 3:
            batcher.end(sessions.pop(int(rng.integers(len(sessions)))))
        elif act < 4:
            if something():
                serve_one(interrupted=True)
        elif act < 9:
            session = sessions[int(rng.integers(len(sessions)))]
            steps = int(rng.integers(1, 11))
            x = rng.standard_normal((steps, 3)).astype(np.float32).tobytes()
            output = list(Output)[int(rng.integers(3))]
            work = Work((x,), steps, output, 0, time.perf_counter())
            work.counted = rng.random() < 0.8  # else it is a call's row, and not its last
            batcher.submit(session, work)
        else:
            while something():
                serve_one()
    while something():
        serve_one()
    assert expected.count > 5
    for session in sessions:
        batcher.end(session)


@pytest.mark.parametrize("seed", range(4))
def test_random_messages_through_the_rings_of_front_ends(
    models_dir: Path, clock: Callable[[], Clock], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rig = Rig(models_dir / "lstm.onnx")
    ticking, expected = clock(), Expected()
    took = timed(rig.model.engine, ticking, monkeypatch)
    front = rig.front()
    entries = [front.open() for _ in range(4)]
    arrived: dict[int, list[float]] = {entry: [] for entry in entries}
    sent_s: list[float] = []
    answer = rig.ring_sessions.answer
    monkeypatch.setattr(
        rig.ring_sessions, "answer", lambda records: (sent_s.append(ticking.now_s), answer(records))
    )
    for _ in range(30):
        for entry in rng.choice(entries, int(rng.integers(1, 4))).tolist():
            if len(arrived[entry]) < 2:  # as a front end does
                front.send(entry, rng.standard_normal((int(rng.integers(1, 11)), 3)).astype(np.float32))
                arrived[entry].append(ticking.now_s)
        for _ in range(int(rng.integers(3))):
            rig.ring_sessions.gather()
            batch = rig.ring_sessions.form()
            if batch is None:
                continue
            expected.runs[len(batch.entries)] += 1
            rig.rings.run(batch)
            for row, entry in enumerate(batch.entries.tolist()):
                mine = batch.head[batch.row == row]
                messages = int(mine["last"].sum()) + (not mine["last"][-1])
                for place in range(messages):
                    expected.earlier_s[entry] = expected.earlier_s.get(entry, 0.0) + took[-1]
                    if place < mine["last"].sum():
                        expected.count += 1
                        expected.success_s += sent_s[-1] - arrived[entry].pop(0)
                        expected.infer_s += expected.earlier_s.pop(entry)
            expected.check(rig.model.metrics.request_figures())
            front.read()
    assert expected.count > 5
    rig.close()


def test_a_message_that_waits_between_its_runs_waits_in_the_queue() -> None:
    metrics = ModelMetrics("m", "1")
    metrics.requests.answered(1, 10.0, None)
    figures = metrics.request_figures()
    assert (figures.success.total_ns, figures.queue.total_ns) == (10**10, 10**10)
    assert figures.executions == 0
