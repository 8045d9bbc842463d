"""Staging takes exactly the bytes that a message's steps need; who brings others is refused alone, nobody else hurt.

Every entrance checks lengths. These tests go behind the entrances, as a fault in one of them would.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.service.batching.batch import Batch, Part, Row
from streamcell.service.batching.guarded_run import Misfit
from streamcell.service.batching.row_staging import RowStaging
from streamcell.service.engine.device import Device
from streamcell.service.errors import ServiceError, WrongByteCount
from streamcell.service.frames.frame import Frame
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.session import Output, Session, Work
from streamcell.service.settings import Settings

Array = np.ndarray[Any, np.dtype[np.float32]]
INPUT = 3


class Listener:
    """Keeps what its session is told."""

    def __init__(self) -> None:
        self.answers: list[Array] = []
        self.errors: list[ServiceError] = []

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        self.answers.append(np.frombuffer(outputs[0], np.float32))

    def deliver_frame(self, frame: Frame) -> None:
        self.answers.append(frame.outputs[0].view(np.float32).copy())
        self.errors += [refusal.error for refusal in frame.refusals]

    def resume(self) -> None:
        pass

    def fail(self, error: ServiceError) -> None:
        self.errors.append(error)


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Iterator[LoadedModel]:
    settings = Settings.load(models=models_dir, max_chunk=8, max_batch=16)
    loaded = load(open_model(models_dir / "lstm.onnx", "lstm"), settings, Device())
    yield loaded
    loaded.runner.stop()


def steps(number: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((number, INPUT)).astype(np.float32)


def message(x: Array, by: int = 0) -> Work:
    """`x` as work, with `by` bytes too many or, negative, too few."""
    data = x.tobytes()
    data = data[:by] if by < 0 else data + bytes(by)
    return Work((data,), len(x), Output.ALL, 0, 0.0)


def row_of(session: Session, steps: int, *parts: Part) -> Row:
    """A row of these parts."""
    return Row(session, steps, list(parts), parts[0].work)


def alone(model: LoadedModel, *chunks: Array) -> list[Array]:
    """What a session of its own gives."""
    listener = Listener()
    session = model.batcher.open("alone", listener)
    for chunk in chunks:
        model.batcher.submit(session, message(chunk))
    wait(lambda: len(listener.answers) == len(chunks))
    model.batcher.end(session)
    return listener.answers


def wait(done: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end_s
        time.sleep(0.001)


@pytest.mark.parametrize("by", [-12, -4, -1, 1, 4, 12, 24])
@pytest.mark.parametrize("lengths", [(2, 2, 2, 2), (2, 3, 4, 3)], ids=["equal lengths", "ragged"])
def test_who_brings_too_few_or_too_many_bytes_is_refused_alone(
    model: LoadedModel, lengths: tuple[int, ...], by: int
) -> None:
    listeners = [Listener() for _ in lengths]
    sessions = [model.batcher.open(str(at), listener) for at, listener in enumerate(listeners)]
    chunks = [steps(length, seed) for seed, length in enumerate(lengths)]
    batch = Batch(
        [
            row_of(session, len(x), Part(message(x, by if at == 1 else 0), 0, len(x)))
            for at, (session, x) in enumerate(zip(sessions, chunks, strict=True))
        ],
        max(lengths),
        uniform=len(set(lengths)) == 1,
    )
    for session in sessions:
        session.in_flight = True
    model.runner._runs[Batch](batch)
    assert [type(error) for error in listeners[1].errors] == [WrongByteCount]
    assert not listeners[1].answers
    for at in (0, 2, 3):
        assert not listeners[at].errors
        np.testing.assert_allclose(
            listeners[at].answers[0], alone(model, chunks[at])[0], rtol=1e-5, atol=1e-5
        )
    for session in sessions:
        model.batcher.end(session)


def test_two_wrong_lengths_that_make_up_for_each_other_are_both_refused(model: LoadedModel) -> None:
    listeners = [Listener() for _ in range(3)]
    sessions = [model.batcher.open(str(at), listener) for at, listener in enumerate(listeners)]
    x = steps(2, 1)
    for session in sessions:
        session.in_flight = True
    rows = [
        row_of(session, 2, Part(message(x, by), 0, 2))
        for session, by in zip(sessions, (-12, 0, 12), strict=True)
    ]
    model.runner._runs[Batch](Batch(rows, 2, uniform=True))
    assert [len(listener.errors) for listener in listeners] == [1, 0, 1]
    np.testing.assert_allclose(listeners[1].answers[0], alone(model, x)[0], rtol=1e-5, atol=1e-5)
    for session in sessions:
        model.batcher.end(session)


def test_what_came_before_a_bad_length_in_its_session_is_answered(model: LoadedModel) -> None:
    listener = Listener()
    session = model.batcher.open("a", listener)
    first, second = steps(2, 1), steps(3, 2)
    session.in_flight = True
    row = row_of(session, 5, Part(message(first), 0, 2), Part(message(second, -12), 0, 3))
    model.runner._runs[Batch](Batch([row], 5, uniform=False))
    assert [type(error) for error in listener.errors] == [WrongByteCount]
    np.testing.assert_allclose(listener.answers[0], alone(model, first)[0], rtol=1e-5, atol=1e-5)
    model.batcher.end(session)


def test_nothing_of_an_earlier_run_is_in_the_buffers_of_a_later_one(model: LoadedModel) -> None:
    """Whatever lengths run after one another: behind each row's last step there are zeros."""
    staging = RowStaging(model.engine)
    sessions = [Session(str(at), Listener(), 1 + at, 1, 0.0) for at in range(6)]
    rng = random.Random(5)
    for number in range(200):
        lengths = [rng.randint(1, 8) for _ in range(rng.randint(1, 6))]
        mark = float(number + 1)
        rows = [
            row_of(session, length, Part(message(np.full((length, INPUT), mark, np.float32)), 0, length))
            for session, length in zip(sessions, lengths, strict=False)
        ]
        staged = staging.stage(Batch(rows, max(lengths), uniform=len(set(lengths)) == 1))
        for row, length in zip(staged.values[0], lengths, strict=False):
            assert (row[:length] == mark).all()
            assert (row[length:] == 0).all()


def test_no_byte_of_a_wrong_length_is_copied(model: LoadedModel) -> None:
    staging = RowStaging(model.engine)
    session = Session("a", Listener(), 1, 1, 0.0)
    for uniform in (True, False):
        model.engine.clear_inputs()
        rows = [
            row_of(session, 2, Part(message(np.full((2, INPUT), 7, np.float32), by), 0, 2))
            for by in (-12, 12)
        ]
        with pytest.raises(Misfit):
            staging.stage(Batch(rows, 2, uniform=uniform))
        assert not model.engine.stage(2, 2).values[0].any()


@pytest.mark.parametrize("shape", [(5, 12), (7, 12), (6, 11)])
def test_a_frame_whose_inputs_are_not_as_long_as_its_rows_say_is_refused_alone(
    model: LoadedModel, shape: tuple[int, int]
) -> None:
    listeners = [Listener(), Listener()]
    streams = [
        model.frames.open(model.batcher, str(at), listener, "") for at, listener in enumerate(listeners)
    ]
    x = steps(6, 4)
    whole = x.view(np.uint8).reshape(6, 12)
    for stream, data in zip(streams, (whole, np.ones(shape, np.uint8)), strict=True):
        frame = Frame(np.arange(3), None, 2, (data,), Output.ALL, 0, 1, open_count=3)
        model.batcher.submit(stream, frame)
    wait(lambda: all(listener.answers for listener in listeners))
    assert not listeners[0].errors
    expected = [alone(model, x[2 * row : 2 * row + 2])[0] for row in range(3)]
    np.testing.assert_allclose(
        listeners[0].answers[0].ravel(), np.concatenate(expected), rtol=1e-5, atol=1e-5
    )
    assert [error.reason for error in listeners[1].errors] == ["WRONG_BYTE_COUNT"] * 3
    assert not listeners[1].answers[0].any()
    for stream in streams:
        model.batcher.end(stream)
