"""The API on the wire, by the generated stubs against a real server: what is answered, and how each mistake is."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from streamcell.proto import pb, rpc
from tests.support.arrays import noise
from tests.support.waiting import waited

CONFORMANCE = pytest.mark.conformance
Steps = np.ndarray


@pytest.fixture(scope="module")
def channel(served: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return rpc.StreamCellStub(channel)


def open_(model: str = "lstm", **fields: Any) -> pb.StreamRequest:
    return pb.StreamRequest(open=pb.OpenSession(model=model, **fields))


def chunk(x: Steps, **fields: Any) -> pb.StreamRequest:
    return pb.StreamRequest(inputs=[x.astype("<f4").tobytes()], **fields)


def expected(module: torch.nn.Module, x: Steps) -> Steps:
    with torch.no_grad():
        y: Steps = module(torch.from_numpy(x))[0].numpy()
    return y


def error_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "streamcell"
    assert status.message == error.details()
    assert status.code == error.code().value[0]
    return error.code(), info, error.details()


@pytest.mark.parametrize(
    "kind", [pytest.param("lstm", marks=CONFORMANCE), "gru", "rnn", "mlp", "cnn", "tcn", "deep"]
)
def test_a_stream_gives_pytorchs_outputs_step_by_step_and_in_chunks(
    stub: Any, modules: dict[str, torch.nn.Module], kind: str
) -> None:
    x = noise(17, 3)
    cuts = [0, 1, 2, 5, 6, 16, 17]
    requests = [open_(kind), *(chunk(x[a:b], tag=a) for a, b in itertools.pairwise(cuts))]
    greeting, *replies = stub.Stream(iter(requests))
    assert greeting.opened.model == kind
    assert greeting.opened.version == "1"
    assert [spec.name for spec in greeting.opened.inputs] == ["x"]
    assert [reply.step_index for reply in replies] == cuts[1:]
    assert [reply.tag for reply in replies] == cuts[:-1]
    y = np.concatenate([np.frombuffer(reply.outputs[0], "<f4").reshape(reply.steps, 2) for reply in replies])
    np.testing.assert_allclose(y, expected(modules[kind], x[None])[0], rtol=1e-5, atol=1e-5)


def test_the_opening_message_may_carry_steps(stub: Any, modules: dict[str, torch.nn.Module]) -> None:
    x = noise(2, 3)
    request = open_()
    request.inputs.append(x.tobytes())
    (reply,) = stub.Stream(iter([request]))
    assert reply.opened.session_id
    assert reply.steps == reply.step_index == 2
    y = np.frombuffer(reply.outputs[0], "<f4").reshape(2, 2)
    np.testing.assert_allclose(y, expected(modules["lstm"], x[None])[0], rtol=1e-5, atol=1e-5)


def test_a_message_longer_than_a_chunk_is_answered_whole(
    stub: Any, modules: dict[str, torch.nn.Module]
) -> None:
    x = noise(1000, 3)
    _, reply = stub.Stream(iter([open_(), chunk(x)]))
    y = np.frombuffer(reply.outputs[0], "<f4").reshape(1000, 2)
    np.testing.assert_allclose(y, expected(modules["lstm"], x[None])[0], rtol=1e-5, atol=1e-5)


def test_output_modes_choose_what_comes_back_and_never_what_is_run(
    stub: Any, modules: dict[str, torch.nn.Module]
) -> None:
    x = noise(200, 3)
    y = expected(modules["lstm"], x[None])[0]
    requests = [
        open_(output_mode=pb.OUTPUT_MODE_LAST),
        chunk(x[:90]),
        chunk(x[90:100], output_mode=pb.OUTPUT_MODE_NONE),
        chunk(x[100:], output_mode=pb.OUTPUT_MODE_ALL),
    ]
    _, last, none, whole = stub.Stream(iter(requests))
    assert (last.steps, none.steps, whole.steps) == (1, 0, 100)
    assert (last.step_index, none.step_index, whole.step_index) == (90, 100, 200)
    assert not none.outputs
    np.testing.assert_allclose(np.frombuffer(last.outputs[0], "<f4"), y[89], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        np.frombuffer(whole.outputs[0], "<f4").reshape(100, 2), y[100:], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (1, 300), (7, 5), (300, 2)])
def test_predict_answers_whole_sequences_from_the_initial_state(
    stub: Any, modules: dict[str, torch.nn.Module], kind: str, batch: int, steps: int
) -> None:
    x = noise(batch, steps, 3)
    reply = stub.Predict(pb.PredictRequest(model=kind, inputs=[x.tobytes()], batch=batch))
    assert (reply.batch, reply.steps) == (batch, steps)
    y = np.frombuffer(reply.outputs[0], "<f4").reshape(batch, steps, 2)
    np.testing.assert_allclose(y, expected(modules[kind], x), rtol=1e-5, atol=1e-5)
    reply = stub.Predict(
        pb.PredictRequest(model=kind, inputs=[x.tobytes()], batch=batch, output_mode=pb.OUTPUT_MODE_LAST)
    )
    assert (reply.batch, reply.steps) == (batch, 1)
    last = np.frombuffer(reply.outputs[0], "<f4").reshape(batch, 2)
    np.testing.assert_allclose(last, y[:, -1], rtol=1e-5, atol=1e-5)


NAN = np.full((1, 3), np.nan, np.float32)
GOOD = np.ones((1, 3), np.float32)


@pytest.mark.conformance
def test_messages_before_a_bad_one_are_answered(stub: Any, modules: dict[str, torch.nn.Module]) -> None:
    x = noise(4, 3)
    call = stub.Stream(iter([open_(), chunk(x[:2]), chunk(x[2:]), chunk(NAN), chunk(GOOD)]))
    replies: list[pb.StreamResponse] = []
    _, info, _ = error_of(lambda: replies.extend(iter(call)))
    assert info.reason == "NON_FINITE_INPUT"
    assert [reply.step_index for reply in replies] == [0, 2, 4]


def test_models_are_listed_with_signature_states_and_card(stub: Any) -> None:
    models = {model.name: model for model in stub.ListModels(pb.ListModelsRequest()).models}
    assert sorted(models) == ["cnn", "deep", "gru", "lstm", "mlp", "rnn", "tcn"]
    lstm = stub.GetModel(pb.GetModelRequest(model="lstm")).model
    assert lstm.kind == "lstm"
    assert [(spec.name, spec.dtype, list(spec.step_shape)) for spec in lstm.inputs] == [("x", "float32", [3])]
    assert [(spec.name, list(spec.step_shape)) for spec in lstm.outputs] == [("y", [2])]
    assert [(state.input, list(state.shape), state.bytes) for state in lstm.states] == [
        ("h", [2, 16], 128),
        ("c", [2, 16], 128),
    ]
    assert '"kind":"lstm"' in lstm.card_json
    assert not models["mlp"].states
    code, info, _ = error_of(lambda: stub.GetModel(pb.GetModelRequest(model="nope")))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


@pytest.mark.conformance
def test_sessions_are_listed_in_pages_and_can_be_closed(stub: Any) -> None:
    done = threading.Event()

    def requests() -> Iterator[pb.StreamRequest]:
        yield open_("gru")
        yield chunk(GOOD)
        done.wait(60)

    calls, ids = [], []
    for _ in range(3):  # one after the other: calls that begin together may open in another order
        calls.append(stub.Stream(requests()))
        ids.append(next(calls[-1]).opened.session_id)
        next(calls[-1])
    first = stub.ListSessions(pb.ListSessionsRequest(model="gru", page_size=2))
    rest = stub.ListSessions(
        pb.ListSessionsRequest(model="gru", page_size=2, page_token=first.next_page_token)
    )
    listed = [*first.sessions, *rest.sessions]
    assert [session.session_id for session in listed] == ids
    assert [session.step_index for session in listed] == [1, 1, 1]
    assert {session.state for session in listed} == {pb.SESSION_STATE_ACTIVE}
    assert not rest.next_page_token
    assert stub.CloseSession(pb.CloseSessionRequest(session_id=ids[1])).step_index == 1
    code, info, _ = error_of(lambda: next(calls[1]))
    assert (code, info.reason) == (grpc.StatusCode.ABORTED, "SESSION_CLOSED")
    code, info, _ = error_of(lambda: stub.CloseSession(pb.CloseSessionRequest(session_id=ids[1])))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")
    code, info, _ = error_of(lambda: stub.ListSessions(pb.ListSessionsRequest(page_token="x y")))
    assert info.reason == "BAD_PAGE_TOKEN"
    done.set()
    assert [list(calls[number]) for number in (0, 2)] == [[], []]
    assert waited(lambda: not stub.ListSessions(pb.ListSessionsRequest(model="gru")).sessions)


@pytest.mark.conformance
def test_health_is_per_model_and_reflection_names_the_service(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "lstm", "mlp", "streamcell.v1.StreamCell"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nope"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
    assert "streamcell.v1.StreamCell" in [each.name for each in answer.list_services_response.service]
