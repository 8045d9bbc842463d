"""Streams of frames on real servers: every row as if its session were alone, whatever the others in its frame do."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamcell.proto import pb, rpc
from streamcell.service.sessions.session import Output
from tests.support.arrays import noise, truth
from tests.support.waiting import waited

CONFORMANCE = pytest.mark.conformance
SESSIONS, BATCH, CHUNK, STEPS = 12, 4, 4, 16
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
MODES = {pb.OUTPUT_MODE_ALL: Output.ALL, pb.OUTPUT_MODE_LAST: Output.LAST, pb.OUTPUT_MODE_NONE: Output.NONE}


def packed(numbers: Any) -> bytes:
    return np.asarray(numbers, "<u4").tobytes()


def opening(count: int, model: str = "lstm", **fields: Any) -> pb.FrameRequest:
    return pb.FrameRequest(open=pb.OpenFrames(model=model), open_sessions=count, **fields)


def rows(handles: Any, x: np.ndarray, **fields: Any) -> pb.FrameRequest:
    return pb.FrameRequest(handles=packed(handles), inputs=[x.astype("<f4").tobytes()], **fields)


def reasons(reply: pb.FrameResponse) -> dict[tuple[str, int], str]:
    return {(pb.FramePart.Name(each.part)[11:].lower(), each.index): each.reason for each in reply.errors}


@pytest.fixture(scope="module")
def server(start_server: Any, models_dir: Path) -> Any:
    sizes = {"--max-sessions": SESSIONS, "--max-batch": BATCH, "--max-chunk": CHUNK}
    flags = [str(each) for pair in sizes.items() for each in pair]
    return start_server(models_dir, *flags, "--max-steps-per-message", str(STEPS), "--queue-messages", "3")


@pytest.fixture(scope="module")
def stub(server: Any) -> Iterator[Any]:
    with grpc.insecure_channel(server.target) as channel:
        yield rpc.StreamCellStub(channel)


class Feed:
    """Requests that a test sends one by one."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.send = self._queue.put

    def __iter__(self) -> Iterator[Any]:
        return iter(self._queue.get, None)

    def close(self) -> None:
        self.send(None)


class Oracle:
    """What a stream of frames must answer, by the text of the .proto, one session after another in PyTorch."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.states: dict[int, tuple[torch.Tensor, ...]] = {}
        self.applied: dict[int, int] = {}
        self.refused_in: dict[int, int] = {}
        self.frames = 0

    def answer(self, frame: Asked) -> dict[str, Any]:
        """The errors, opened handles, outputs and step indices that the reply must hold."""
        self.frames += 1
        errors = {
            **self._each_once("close", frame.close, self.states.pop),
            **self._each_once("reset", frame.reset, self._start),
        }
        opened = []
        if len(self.states) + frame.opens > SESSIONS:
            errors["open", 0] = "SESSION_LIMIT"
        else:
            opened = [handle for handle in range(SESSIONS) if handle not in self.states][: frame.opens]
            for handle in opened:
                self._start(handle)
        outputs = []
        seen: set[int] = set()
        for place, (handle, x) in enumerate(zip(frame.handles, frame.inputs, strict=True)):
            reason = self._refusal(handle, x, handle in seen, frame.answered)
            seen.add(handle)
            y = np.zeros((len(x), 2), np.float32)
            if reason:
                errors["row", place] = reason
            else:
                y = self._step(handle, x)
            cut = {Output.ALL: slice(None), Output.LAST: slice(-1, None), Output.NONE: slice(0)}
            outputs.append(y[cut[MODES[frame.mode]]])
        return {
            "errors": errors,
            "opened": opened,
            "outputs": np.concatenate(outputs) if outputs else np.zeros((0, 2), np.float32),
            "indices": [self.applied[each] if each in self.states else 0 for each in frame.handles],
        }

    def _each_once(
        self, part: str, handles: list[int], act: Callable[[int], Any]
    ) -> dict[tuple[str, int], str]:
        errors = {}
        known = set(self.states)
        for place, handle in enumerate(handles):
            if handle not in known:
                errors[part, place] = "UNKNOWN_HANDLE"
            elif handle in handles[:place]:
                errors[part, place] = "DUPLICATE_HANDLE"
            else:
                act(handle)
        return errors

    def _start(self, handle: int) -> None:
        self.states[handle], self.applied[handle], self.refused_in[handle] = (), 0, 0

    def _refusal(self, handle: int, x: np.ndarray, again: bool, answered: int | None) -> str:
        reason = ""
        if len(x) > STEPS:
            reason = "TOO_MANY_STEPS"
        elif not np.isfinite(x).all():
            reason = "NON_FINITE_INPUT"
        if handle not in self.states:
            return reason or "UNKNOWN_HANDLE"
        reason = reason or ("DUPLICATE_HANDLE" if again else "")
        gap = answered is not None and answered < self.refused_in[handle] < self.frames
        if reason:
            self.refused_in[handle] = self.frames
        return reason or ("SEQUENCE_GAP" if gap else "")

    def _step(self, handle: int, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            result, *state = self.module(torch.from_numpy(x[None]), *self.states[handle])
        self.states[handle] = tuple(state)
        self.applied[handle] += len(x)
        y: np.ndarray = result[0].numpy()
        return y


@dataclass
class Asked:
    """One frame as a test means it."""

    opens: int = 0
    close: list[int] = field(default_factory=list)
    reset: list[int] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)
    inputs: list[np.ndarray] = field(default_factory=list)
    mode: int = pb.OUTPUT_MODE_ALL
    answered: int | None = None

    def request(self, tag: int) -> pb.FrameRequest:
        """The frame on the wire."""
        lengths = [len(x) for x in self.inputs]
        ragged = len(set(lengths)) > 1
        return pb.FrameRequest(
            open_sessions=self.opens,
            close=packed(self.close),
            reset=packed(self.reset),
            handles=packed(self.handles),
            lengths=packed(lengths) if ragged else b"",
            steps=0 if ragged else max(lengths, default=0),
            inputs=[b"".join(x.tobytes() for x in self.inputs)] if self.inputs else [],
            output_mode=self.mode,
            answered=self.answered,
            tag=tag,
        )


HANDLE = st.integers(0, SESSIONS)
FRAMES = st.fixed_dictionaries(
    {
        "close": st.just([]) | st.lists(HANDLE, max_size=4),
        "reset": st.just([]) | st.lists(HANDLE, max_size=4),
        "opens": st.sampled_from([0, 0, 0, 1, 3, 7]),
        "handles": st.lists(HANDLE, max_size=9) | st.permutations(range(SESSIONS)) | st.just([*range(SESSIONS)]),
        "lengths": st.integers(1, 7) | st.lists(st.integers(1, 7), min_size=12, max_size=12) | st.just(STEPS + 1),
        "spoil": st.just([]) | st.lists(st.integers(0, 11), max_size=2),
        "mode": st.sampled_from(list(MODES)),
    }
)  # fmt: skip


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_every_row_is_as_if_its_session_were_alone(
    stub: Any, server: Any, modules: dict[str, torch.nn.Module], kind: str
) -> None:
    """Random subsets, opens, closes, resets and bad rows, all sent ahead of the first reply."""

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    @given(
        plan=st.lists(FRAMES, min_size=1, max_size=12),
        first=st.integers(0, SESSIONS),
        pipelines=st.booleans(),
        seed=st.integers(0, 2**31),
    )
    def answered_as_alone(plan: list[dict[str, Any]], first: int, pipelines: bool, seed: int) -> None:
        random_frames_are_answered(stub, modules[kind], kind, plan, first, pipelines, seed)

    answered_as_alone()
    assert waited(lambda: server.metric("streamcell_slots_used") == server.metric("streamcell_sessions") == 0)


def random_frames_are_answered(
    stub: Any,
    module: torch.nn.Module,
    kind: str,
    plan: list[dict[str, Any]],
    first: int,
    pipelines: bool,
    seed: int,
) -> None:
    """Send the frames of a plan in one stream and compare each reply with the oracle's."""
    random = np.random.default_rng(seed)
    asked = [Asked(opens=first)]
    for drawn in plan:
        lengths = drawn.pop("lengths")
        spoil = drawn.pop("spoil")
        each = Asked(**drawn, answered=0 if pipelines else None)
        for place in range(len(each.handles)):
            steps = lengths[place] if isinstance(lengths, list) else lengths
            x = random.standard_normal((steps, 3)).astype(np.float32)
            if place in spoil:
                x[random.integers(steps), random.integers(3)] = random.choice([np.nan, np.inf, -np.inf])
            each.inputs.append(x)
        asked.append(each)
    requests = [each.request(tag) for tag, each in enumerate(asked)]
    requests[0].open.model = kind
    replies = list(stub.StreamFrames(iter(requests)))
    assert len(replies) == len(requests)
    oracle = Oracle(module)
    for tag, (each, reply) in enumerate(zip(asked, replies, strict=True)):
        wanted = oracle.answer(each)
        assert reasons(reply) == wanted["errors"], tag
        assert np.frombuffer(reply.handles, "<u4").tolist() == wanted["opened"]
        assert np.frombuffer(reply.step_indices, "<u8").tolist() == wanted["indices"]
        got = np.frombuffer(b"".join(reply.outputs), "<f4").reshape(-1, 2)
        np.testing.assert_allclose(got, wanted["outputs"], **TOLERANCE)
        assert reply.tag == tag


@pytest.mark.conformance
def test_frames_of_several_streams_and_single_sessions_run_side_by_side(
    stub: Any, modules: dict[str, torch.nn.Module]
) -> None:
    x = noise(3, 3, 30, 3)  # stream, member, step
    alone = noise(2, 30, 3, seed=4)

    def frames(which: int) -> Iterator[pb.FrameRequest]:
        yield opening(3)
        for step in range(30):
            yield rows(range(3), x[which, :, step])

    def steps(which: int) -> Iterator[pb.StreamRequest]:
        yield pb.StreamRequest(open=pb.OpenSession(model="lstm"))
        for step in alone[which]:
            yield pb.StreamRequest(inputs=[step.tobytes()])

    calls = [stub.StreamFrames(frames(which)) for which in range(3)]
    singles = [stub.Stream(steps(which)) for which in range(2)]
    for which, call in enumerate(calls):
        y = [np.frombuffer(reply.outputs[0], "<f4").reshape(3, 2) for reply in list(call)[1:]]
        np.testing.assert_allclose(np.stack(y, 1), truth(modules["lstm"], x[which]), **TOLERANCE)
    for which, call in enumerate(singles):
        y = [np.frombuffer(reply.outputs[0], "<f4") for reply in list(call)[1:]]
        np.testing.assert_allclose(y, truth(modules["lstm"], alone[which : which + 1])[0], **TOLERANCE)


def test_a_frame_larger_than_a_batch_runs_in_several(server: Any, stub: Any) -> None:
    before = server.metric("streamcell_batch_rows_count"), server.metric("streamcell_batch_rows_sum")
    _, reply = stub.StreamFrames(iter([opening(SESSIONS), rows(range(SESSIONS), noise(SESSIONS, 3))]))
    assert not reply.errors
    assert waited(lambda: server.metric("streamcell_batch_rows_count") - before[0] == SESSIONS / BATCH)
    assert waited(lambda: server.metric("streamcell_batch_rows_sum") - before[1] == SESSIONS)


def test_the_first_frame_may_carry_rows_and_says_what_the_stream_is(stub: Any) -> None:
    request = rows([1, 0], noise(2, 3))
    request.MergeFrom(opening(2))
    (reply,) = stub.StreamFrames(iter([request]))
    assert (reply.opened.model, reply.opened.version) == ("lstm", "1")
    assert reply.opened.session_id
    assert reply.opened.max_steps_per_message == STEPS
    assert [spec.name for spec in reply.opened.inputs] == ["x"]
    assert np.frombuffer(reply.step_indices, "<u8").tolist() == [1, 1]


GOOD = rows([0, 1], noise(2, 3))


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([opening(SESSIONS + 1)], "SESSION_LIMIT"),
        ([opening(2), pb.FrameRequest(handles=b"123", inputs=GOOD.inputs)], "MALFORMED_MESSAGE"),
        ([opening(2), pb.FrameRequest(close=b"123")], "MALFORMED_MESSAGE"),
        ([opening(2), pb.FrameRequest(inputs=GOOD.inputs)], "MALFORMED_MESSAGE"),
        ([opening(2), rows([0, 1], noise(3, 3))], "WRONG_BYTE_COUNT"),
        ([opening(2), rows([0, 1], noise(2, 3), lengths=packed([1, 2]))], "WRONG_BYTE_COUNT"),
        ([opening(2), rows([0, 1], noise(2, 3), lengths=packed([1, 1, 1]))], "MALFORMED_MESSAGE"),
        ([opening(2), rows(range(SESSIONS + 1), noise(SESSIONS + 1, 3))], "MALFORMED_MESSAGE"),
    ],
)
def test_a_frame_that_makes_no_sense_ends_the_stream(
    server: Any, frames: list[Any], reason: str, eventually: Any
) -> None:
    with grpc.insecure_channel(server.target) as channel:
        method = channel.stream_stream(
            "/streamcell.v1.StreamCell/StreamFrames",
            request_serializer=lambda each: each if isinstance(each, bytes) else each.SerializeToString(),
            response_deserializer=pb.FrameResponse.FromString,
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(method(iter(frames)))
    trailing: Any = dict(caught.value.trailing_metadata())  # type: ignore[attr-defined]
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == reason
    assert eventually(lambda: server.metric("streamcell_sessions") == 0)
    assert waited(lambda: server.metric("streamcell_slots_used") == 0)


def test_a_row_of_no_timestep_is_refused_alone(stub: Any) -> None:
    _, reply = stub.StreamFrames(iter([opening(2), rows([0, 1], noise(2, 3), lengths=packed([0, 2]))]))
    assert reasons(reply) == {("row", 0): "NO_STEPS"}
    assert np.frombuffer(reply.step_indices, "<u8").tolist() == [0, 2]


@pytest.mark.conformance
def test_a_refusal_says_what_was_wrong(stub: Any) -> None:
    x = noise(2, 2, 3)
    x[1, 1, 2] = np.inf
    _, reply = stub.StreamFrames(iter([opening(2), rows([0, 1], x)]))
    (error,) = reply.errors
    assert (error.index, error.reason, error.code) == (1, "NON_FINITE_INPUT", 3)
    assert error.text == "input 'x': expected finite values, got inf at step 1, element 2"
    assert dict(error.metadata) == {"input": "x", "step": "1", "element": "2"}
    assert not error.session_ended


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("cancel", marks=CONFORMANCE),
        pytest.param("half-close", marks=CONFORMANCE),
        "disconnect",
    ],
)
def test_every_end_of_the_stream_frees_its_sessions(server: Any, how: str, eventually: Any) -> None:
    # Ends are counted after the client has heard of them: those of the tests before, too.
    opened = server.metric("streamcell_sessions_opened_total")
    assert eventually(lambda: server.metric("streamcell_sessions_ended_total") == opened)
    ended = opened
    channel = grpc.insecure_channel(server.target)
    feed = Feed()
    call = rpc.StreamCellStub(channel).StreamFrames(iter(feed))
    feed.send(opening(SESSIONS))
    next(call)
    for _ in range(20):
        feed.send(rows(range(SESSIONS), noise(SESSIONS, 3)))
    next(call)
    if how == "cancel":
        call.cancel()
    elif how == "disconnect":
        channel.close()
    feed.close()
    if how == "half-close":
        assert len(list(call)) == 19
    assert eventually(lambda: server.metric("streamcell_slots_used") == 0)
    assert eventually(lambda: server.metric("streamcell_sessions_ended_total") == ended + SESSIONS)
    assert waited(lambda: server.metric("streamcell_sessions") == 0)
    channel.close()


def test_the_stream_is_listed_as_one_session_and_closed_as_one(
    server: Any, stub: Any, eventually: Any
) -> None:
    feed = Feed()
    call = stub.StreamFrames(iter(feed))
    feed.send(opening(5))
    session_id = next(call).opened.session_id
    (listed,) = stub.ListSessions(pb.ListSessionsRequest()).sessions
    assert (listed.session_id, listed.members) == (session_id, 5)
    assert (listed.state, listed.step_index) == (pb.SESSION_STATE_OPEN, 0)
    assert waited(lambda: server.metric("streamcell_sessions", state="open") == 5)
    feed.send(rows([0, 3], noise(2, 4, 3)))
    next(call)
    feed.send(pb.FrameRequest(close=packed([1])))
    next(call)
    (listed,) = stub.ListSessions(pb.ListSessionsRequest()).sessions
    assert (listed.members, listed.state, listed.step_index) == (4, pb.SESSION_STATE_ACTIVE, 8)
    assert waited(lambda: server.metric("streamcell_sessions", state="open") == 2)
    assert waited(lambda: server.metric("streamcell_sessions", state="active") == 2)
    assert waited(lambda: server.metric("streamcell_slots_used") == 4)
    assert stub.CloseSession(pb.CloseSessionRequest(session_id=session_id)).step_index == 8
    with pytest.raises(grpc.RpcError, match="closed through CloseSession"):
        next(call)
    assert eventually(lambda: server.metric("streamcell_slots_used") == 0)
    feed.close()


def test_frames_may_be_sent_ahead_and_a_full_queue_holds_them_back(stub: Any) -> None:
    """More frames than the queue and the outbox hold: all are answered, in order, once their replies are read."""
    x = noise(200, 2, 3)
    requests = [opening(2), *(rows([0, 1], each, tag=tag) for tag, each in enumerate(x))]
    call = stub.StreamFrames(iter(requests))
    threading.Event().wait(0.2)
    replies = list(call)[1:]
    assert [reply.tag for reply in replies] == list(range(200))
    assert np.frombuffer(replies[-1].step_indices, "<u8").tolist() == [200, 200]
