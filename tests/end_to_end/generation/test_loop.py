"""The engine's loop, in this process: who waits for whom, counted in runs of the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.service.engine.device import Device
from streamcell.service.errors import ServiceError
from streamcell.service.generation.reply import Reply, StopReason
from streamcell.service.generation.sampling import Feedback, Recipe
from streamcell.service.generation.work import Generating
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.session import Aside, Output, Session, Work
from streamcell.service.settings import Settings
from tests.support.waiting import waited

CLASSES = 9
WAIT_S = 60.0


class Listener:
    """Keeps what a session and its generations tell; has room for `room` replies."""

    def __init__(self, model: LoadedModel, room: int = 10**9) -> None:
        self.model = model
        self.room = room
        self.replies: list[Reply] = []
        self.answers: list[int] = []  # runs of the model when each answer came
        self.errors: list[ServiceError] = []
        self.ended = threading.Event()
        self.answered = threading.Event()
        self.wake: Callable[[], None] | None = None
        self.session: Session = model.batcher.open(f"s{id(self)}", self)

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        self.answers.append(runs(self.model))
        self.answered.set()

    def resume(self) -> None: ...

    def fail(self, error: ServiceError) -> None:
        self.errors.append(error)
        self.model.batcher.end(self.session)
        self.ended.set()

    def generated(self, reply: Reply, *, last: bool) -> None:
        self.replies.append(reply)
        if last:
            self.ended.set()

    def has_room(self, wake: Callable[[], None]) -> bool:
        if len(self.replies) < self.room:
            return True
        self.wake = wake
        return False

    def make(self, steps: int, **more: Any) -> Generating:
        payloads = more.pop("payloads", (hot(1),))
        fields: dict[str, Any] = {
            "steps": steps,
            "recipe": Recipe(Feedback.ARGMAX),
            "stop": frozenset(),
            "per_reply": 1,
            "output": Output.NONE,
            "tells": True,
            "tag": 0,
            "arrived_s": time.perf_counter(),
        }
        return Generating(self, payloads, **(fields | more))

    def generate(self, steps: int, **more: Any) -> Generating:
        work = self.make(steps, **more)
        self.model.batcher.submit(self.session, work)
        return work

    def step(self, steps: int = 1) -> int:
        """Submit a message; the runs of the model until it was waiting.

        They are counted once it is: this thread may be off its core for any number of runs before.
        """
        self.answered.clear()
        work = Work((hot(2) * steps,), steps, Output.ALL, 0, time.perf_counter())
        self.model.batcher.submit(self.session, work)
        return runs(self.model)


def hot(index: int) -> bytes:
    return np.eye(CLASSES, dtype=np.float32)[index].tobytes()


def runs(model: LoadedModel) -> int:
    return int(model.metrics.compute_s.totals()[0])


@pytest.fixture
def model(folder: Path) -> Iterator[LoadedModel]:
    """The model of words, loaded here, with room for ten sessions and batches of six."""
    settings = Settings(models=folder, max_sessions=10, max_batch=6)
    loaded = load(open_model(folder / "words.onnx", "words"), settings, Device())
    yield loaded
    loaded.runner.stop()


def test_a_long_generation_holds_up_nobody(model: LoadedModel) -> None:
    generating = [Listener(model) for _ in range(5)]
    works = [each.generate(10**9, per_reply=100) for each in generating]
    ping = Listener(model)
    for _ in range(200):
        before = ping.step()
        assert ping.answered.wait(WAIT_S)
        # The run that was on when the step came, and the one that took it: six rows fit in a batch.
        assert ping.answers[-1] - before <= 2
    steps = [work.applied for work in works]
    assert min(steps) > 100
    # They took turns with the same runs: nobody was a run ahead of another for each of its own.
    assert max(steps) - min(steps) <= 6
    for each in generating:
        model.batcher.end(each.session)


def test_more_generations_than_a_batch_holds_still_let_a_step_in_by_the_second_run(
    model: LoadedModel,
) -> None:
    generating = [Listener(model) for _ in range(9)]
    for each in generating:
        each.generate(10**9, per_reply=100)
    ping = Listener(model)
    for _ in range(100):
        before = ping.step()
        assert ping.answered.wait(WAIT_S)
        assert ping.answers[-1] - before <= 3  # one on its way, at most ⌈10 / 6⌉ in the queue
    for each in generating:
        model.batcher.end(each.session)


def test_a_long_chunk_and_a_generation_alternate(model: LoadedModel) -> None:
    one, chunks = Listener(model), Listener(model)
    work = one.generate(10**9, per_reply=100)
    for _ in range(20):
        applied = work.applied
        before = chunks.step(64)
        assert chunks.answered.wait(WAIT_S)
        assert chunks.answers[-1] - before <= 3
        assert work.applied > applied
    model.batcher.end(one.session)


def test_without_room_a_generation_waits_and_goes_on_where_it_was(model: LoadedModel) -> None:
    listener = Listener(model, room=3)
    work = listener.generate(50)
    # One reply was under way when room was asked for; the session is in nobody's queue.
    assert waited(lambda: listener.session.gate)
    assert waited(lambda: work.applied == listener.session.step_index == len(listener.replies))
    assert len(listener.replies) in (3, 4)
    listener.step()  # a message behind it does not let it go on
    time.sleep(0.05)
    assert listener.session.gate
    listener.room = 10**9
    listener.wake()
    assert listener.ended.wait(WAIT_S)
    assert listener.answered.wait(WAIT_S)
    assert [reply.step_index for reply in listener.replies] == list(range(1, 51))
    assert listener.session.step_index == 51


def test_room_may_come_before_the_batch_has_landed(model: LoadedModel) -> None:
    class Quick(Listener):
        def has_room(self, wake: Callable[[], None]) -> bool:
            wake()
            return False

    listener = Quick(model)
    listener.generate(500)
    assert listener.ended.wait(WAIT_S)
    assert listener.session.step_index == 500


def test_a_session_that_ends_while_it_is_held_gives_its_slot_back(model: LoadedModel) -> None:
    listener = Listener(model, room=1)
    listener.generate(50)
    while listener.wake is None:
        time.sleep(0.001)
    model.batcher.end(listener.session)
    listener.wake()
    assert waited(lambda: model.batcher.live == 0)  # the run that it was in may not have ended


def test_stopping_is_between_two_steps(model: LoadedModel) -> None:
    for _ in range(30):
        listener = Listener(model)
        work = listener.generate(10**9)
        while work.applied < 3:
            time.sleep(0.0001)
        work.stopped = True
        assert listener.ended.wait(WAIT_S)
        last = listener.replies[-1]
        assert last.stop_reason is StopReason.REQUEST
        assert last.step_index == listener.session.step_index == work.applied
        assert sum(reply.steps for reply in listener.replies) == work.applied
        model.batcher.end(listener.session)


def test_a_run_that_fails_ends_the_generation_and_applies_nothing(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener(model)
    work = listener.generate(10**9)
    while work.applied < 3:
        time.sleep(0.0001)

    def fail(staged: Any) -> None:
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr(model.engine, "run", fail)
    assert listener.ended.wait(WAIT_S)
    assert [error.reason for error in listener.errors] == ["ENGINE_FAILED"]
    assert listener.session.step_index == work.applied == len(listener.replies)
    monkeypatch.undo()
    again = Listener(model)
    again.generate(5)
    assert again.ended.wait(WAIT_S)
    assert again.session.step_index == 5


class Hasty(Listener):
    """What lets its generation go on may come before that has come to wait."""

    comes: Callable[[Callable[[], None]], None] | None = None

    def has_room(self, wake: Callable[[], None]) -> bool:
        has_room = super().has_room(wake)
        if not has_room and self.comes is not None:
            self.comes(wake)
        return has_room


def test_a_generation_in_a_session_that_was_put_back_goes_on_if_it_is_let_go_before_it_waits(
    model: LoadedModel,
) -> None:
    listener = Hasty(model, room=30)
    listener.generate(40)
    while listener.wake is None:
        time.sleep(0.001)
    listener.room = 10**9
    listener.wake()
    assert listener.ended.wait(WAIT_S)
    listener.ended.clear()
    told, session = threading.Event(), listener.session
    model.batcher.submit(session, Aside(session, lambda: session.rewind(1), told.set))
    assert told.wait(WAIT_S)
    # An earlier generation has waited further on.
    listener.room, listener.comes = 45, lambda wake: wake()
    listener.generate(10)
    assert listener.ended.wait(WAIT_S)
    assert session.step_index == 11


def test_a_generation_that_is_stopped_before_it_has_come_to_wait_ends(model: LoadedModel) -> None:
    listener = Hasty(model, room=3)
    work = listener.make(50)

    def stop(wake: Callable[[], None]) -> None:
        work.stopped = True
        model.batcher.release(listener.session)

    listener.comes = stop
    model.batcher.submit(listener.session, work)
    assert listener.ended.wait(WAIT_S)
    assert listener.replies[-1].stop_reason is StopReason.REQUEST
