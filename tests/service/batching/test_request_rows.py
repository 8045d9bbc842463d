"""The rows of one Predict call: answered whole, failed once, and silent once the caller has gone.

And what rows and members of frames are given at their opening: it takes no more memory than there are slots.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from streamcell.proto import pb
from streamcell.service.access.identity import ANYONE
from streamcell.service.engine.device import Device
from streamcell.service.errors import EngineFailed, SessionLimit
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.lifecycle.table import Models
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import Limits, make_rows
from streamcell.service.protocols.native.frame_stream import FrameStream
from streamcell.service.protocols.native.predict import PredictCall, predict
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.session import Output
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings
from tests.support.onnx_files import parsed, save

ROWS, STEPS = 3, 4
LIMITS = Limits(1 << 20, 4096, allow_non_finite=False, max_generate_steps=100, max_beam_width=8)


class UnaryCaller:
    """A call whose end is kept, and which can go at any time."""

    peer = "test"
    caller = ANYONE

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.failures: list[Any] = []
        self.go: Callable[[], None]

    def answer(self, data: bytes) -> None:
        self.answers.append(data)

    def fail(self, code: Any, details: str, trailing: Any = ()) -> None:
        self.failures.append((code, details))

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self.go = callback

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        return False


@pytest.fixture
def service(models_dir: Path) -> Iterator[CallContext[LoadedModel]]:
    settings = Settings.load(models=models_dir, max_sessions=ROWS)
    model = load(open_model(models_dir / "lstm.onnx", "lstm"), settings, Device())
    # Without the engine thread: what is delivered, and when, is the test's to say.
    model.batcher.stop()
    model.runner._engine_thread.join()
    model.batcher._stopped = False
    yield CallContext(Models([model]), SessionTable(idle_timeout_s=0), ServerMetrics(), LIMITS)
    model.runner.stop()


def call(service: CallContext[LoadedModel]) -> tuple[UnaryCaller, PredictCall, list[Any], LoadedModel]:
    model = service.models.find("lstm")
    caller = UnaryCaller()
    x = np.ones((ROWS, STEPS, 3), np.float32).tobytes()
    work = make_rows(model, LIMITS, (x,), STEPS, Output.ALL, ROWS)
    rows = PredictCall(caller, service, model)
    rows.start(work, caller)
    return caller, rows, work, model


def test_work_is_cut_by_row_and_counted_once(service: CallContext[LoadedModel]) -> None:
    model = service.models.find("lstm")
    x = np.arange(ROWS * STEPS * 3, dtype=np.float32).reshape(ROWS, STEPS, 3)
    work = make_rows(model, LIMITS, (x.tobytes(),), STEPS, Output.ALL, ROWS)
    assert [each.payloads for each in work] == [(row.tobytes(),) for row in x]
    assert [each.tag for each in work] == list(range(ROWS))
    assert [each.counted for each in work] == [False, False, True]


def test_all_rows_make_one_answer_in_their_order(service: CallContext[LoadedModel]) -> None:
    caller, rows, work, model = call(service)
    for each in (work[2], work[0], work[1]):
        assert not caller.answers
        rows.deliver(each, [bytes([each.tag]) * 8], STEPS, STEPS)
    (answer,) = caller.answers
    assert bytes(8) + b"\1" * 8 + b"\2" * 8 in answer
    assert model.batcher.live == 0


def test_the_first_failure_stands_and_is_counted_once(service: CallContext[LoadedModel]) -> None:
    caller, rows, work, model = call(service)
    rows.deliver(work[0], [bytes(8)], STEPS, STEPS)
    for _ in range(2):
        rows.fail(EngineFailed("no step was applied"))
    rows.deliver(work[1], [bytes(8)], STEPS, STEPS)
    assert (len(caller.failures), caller.answers) == (1, [])
    assert sum(service.metrics._errors.values()) == 1
    assert model.metrics.request_figures().failed["BACKEND"] == 1
    assert model.batcher.live == 0


def test_nothing_is_answered_or_counted_once_the_caller_has_gone(service: CallContext[LoadedModel]) -> None:
    caller, rows, work, model = call(service)
    caller.go()
    rows.deliver(work[0], [bytes(8)], STEPS, STEPS)
    rows.fail(EngineFailed("no step was applied"))
    assert (caller.failures, caller.answers) == ([], [])
    assert not service.metrics._errors
    assert model.batcher.live == 0


def test_where_there_is_no_room_for_all_rows_none_is_taken(service: CallContext[LoadedModel]) -> None:
    call(service)
    model = service.models.find("lstm")
    with pytest.raises(SessionLimit):
        call(service)
    assert model.batcher.live == ROWS


# A session is given 64 KiB at its opening, or has as many zeros.
VOICE = (
    "(float[b, 1] x, float[b, 16384] voice, float[b, 1] h) => (float[b, 1] y, float[b, 1] h_next)"
    "{ loud = ReduceMax<axes = [1]>(voice) h_next = Add(x, h)"
    " y = Add(h_next, loud) }"
)
SIDECAR = """
layout = "batch"
outputs = ["y"]
inputs = ["x", { name = "voice", at = "open", default = 0 }]
[[states]]
input = "h"
output = "h_next"
"""


@pytest.fixture
def voice(tmp_path: Path) -> Iterator[CallContext[LoadedModel]]:
    path = save(parsed(VOICE), tmp_path / "voice.onnx", SIDECAR)
    model = load(open_model(path, "voice"), Settings.load(models=tmp_path, max_sessions=ROWS), Device())
    yield CallContext(Models([model]), SessionTable(idle_timeout_s=0), ServerMetrics(), LIMITS)
    model.runner.stop()


def test_rows_without_a_slot_are_given_nothing_that_takes_memory(voice: CallContext[LoadedModel]) -> None:
    rows = 2000
    message = pb.PredictRequest(model="voice", inputs=[bytes(4 * rows)], batch=rows).SerializeToString()
    caller = UnaryCaller()
    tracemalloc.start()
    try:
        predict(caller, message, voice)  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    ((_, text),) = caller.failures
    assert f"all {ROWS} sessions of this model are taken" in text
    assert peak < 16 * 2**20


class StreamCaller(UnaryCaller):
    """The call of a stream, with its replies."""

    gone = "cancelled"

    def __init__(self) -> None:
        super().__init__()
        self.replies: SimpleQueue[bytes] = SimpleQueue()

    def reply(self, data: bytes, *, last: bool = True) -> None:
        self.replies.put(data)


def test_members_that_expired_keep_their_handles_but_nothing_they_were_given(
    voice: CallContext[LoadedModel], eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    model, caller = voice.models.find("voice"), StreamCaller()
    stream = FrameStream(caller, voice)  # type: ignore[arg-type]
    request = pb.FrameRequest(open=pb.OpenFrames(model="voice"))
    tracemalloc.start()
    try:
        for at in range(100):
            request.open_sessions = ROWS
            assert stream.on_message(request.SerializeToString())
            reply = pb.FrameResponse.FromString(caller.replies.get(timeout=60))
            assert np.frombuffer(reply.handles, "<u4").tolist() == [*range(at * ROWS, (at + 1) * ROWS)]
            request = pb.FrameRequest()
            members = stream._live.session  # type: ignore[union-attr]
            members.expire_members(time.monotonic() + 1)
            assert eventually(lambda: model.batcher.capacity.live == 0)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        stream.on_end(True)
    assert grown < 4 * 2**20
