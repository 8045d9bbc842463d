"""Two tenants who try every method on each other's things, and an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from streamcell.client import Client, connect
from streamcell.client.errors import StreamCellError
from streamcell.proto import pb, rpc
from streamcell.proto.inference import oip
from streamcell.proto.inference import rpc as oip_rpc

from .callers import channel_of
from .every_method import info_of
from .infer_requests import request as infer
from .resumable import Owner, Raw, step
from .tokens import bearer

# Each tenant has a model of its own beside one that both may use.
POLICY = """
[tenants.acme]
models = ["sum", "lstm"]
[tenants.bank]
models = ["sum", "mlp"]
"""

ONE = np.ones((1, 1, 1), np.float32)


class Caller:
    """One tenant's client, and the stubs of both protocols with its token."""

    def __init__(self, target: str, subject: str, stack: ExitStack) -> None:
        channel = stack.enter_context(channel_of(target, subject))
        self.ours: Any = rpc.StreamCellStub(channel)  # type: ignore[no-untyped-call]
        self.oip: Any = oip_rpc.GRPCInferenceServiceStub(channel)
        self.health: Any = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        self.client: Client = stack.enter_context(connect(target, metadata=bearer(f"token-of-{subject}")))


def refusal(call: Callable[[], Any]) -> str:
    """The reason that a call is refused for."""
    try:
        answer = call()
        for _ in answer if hasattr(answer, "__next__") else ():
            pass
    except grpc.RpcError as error:
        return info_of(error).reason
    raise AssertionError("the call was not refused")


@dataclass
class Scene:
    """What acme has on the server, and the three who call."""

    acme: Caller
    bank: Caller
    ops: Caller
    session: Any
    ticket: Owner
    pool: Any

    def sequence(self, caller: Caller, **flags: Any) -> float:
        """A step of sequence 42 of the caller's."""
        answer = caller.oip.ModelInfer(infer(ONE, "sum", sequence_id=42, **flags))
        return float(np.frombuffer(answer.raw_output_contents[0], "<f4")[0])


@contextmanager
def scene_on(target: str) -> Iterator[Scene]:
    """The scene on a server of conftest.py's; at its end everything goes on from where it was."""
    with ExitStack() as stack:
        acme, bank, ops = (Caller(target, name, stack) for name in ("feed", "desk", "ops"))
        session = stack.enter_context(acme.client.session("sum"))
        assert session.step([1.0]) == 1.0
        ticket = Owner()
        begun = Raw(target, ticket.opening(first=1), step(5), metadata=bearer("token-of-feed"))
        begun.replies(2)
        begun.cut()
        pool = stack.enter_context(acme.client.pool("sum", 2))
        made = Scene(acme, bank, ops, session, ticket, pool)
        assert made.sequence(acme, sequence_start=True) == 1.0
        yield made
        # Whatever the other tenant has tried, everything goes on from where it was.
        assert session.step([1.0]) == 2.0
        assert made.sequence(acme, sequence_end=True) == 2.0
        again = Raw(target, ticket.resume(1), metadata=bearer("token-of-feed"))
        assert again.opened().applied == 1
        again.cut()
        acme.ours.CloseSession(pb.CloseSessionRequest(session_id=ticket.id, token=ticket.token))


def streams(it: Scene) -> None:
    assert refusal(lambda: it.bank.ours.Stream(iter([it.ticket.resume(0)]))) == "SESSION_NOT_FOUND"
    opening = pb.StreamRequest(open=pb.OpenSession(model="lstm"))
    assert refusal(lambda: it.bank.ours.Stream(iter([opening]))) == "MODEL_NOT_FOUND"
    with it.acme.client.session("sum", resume=True) as session:
        session.step([7.0])
        snapshot = session.snapshot()
    with pytest.raises(StreamCellError) as raised, it.bank.client.restore(snapshot):
        pass
    assert raised.value.reason == "SNAPSHOT_INVALID"
    with it.acme.client.restore(snapshot) as session:
        assert session.step([1.0]) == 8.0
    # With the same id it gets one of its own, or nothing: never the other's.
    assert refusal(lambda: it.bank.ours.Stream(iter([it.ticket.opening()]))) == "SESSION_NOT_FOUND"


def frames(it: Scene) -> None:
    opening = pb.FrameRequest(open=pb.OpenFrames(model="lstm"), open_sessions=1)
    assert refusal(lambda: it.bank.ours.StreamFrames(iter([opening]))) == "MODEL_NOT_FOUND"
    # Handles are a stream's own.
    mine = pb.FrameRequest(
        open=pb.OpenFrames(model="sum"), handles=np.zeros(1, "<u4").tobytes(), inputs=[ONE.tobytes()]
    )
    (reply,) = it.bank.ours.StreamFrames(iter([mine]))
    assert [error.reason for error in reply.errors] == ["UNKNOWN_HANDLE"]


def predicts(it: Scene) -> None:
    asked = pb.PredictRequest(model="lstm", inputs=[bytes(12)])
    assert refusal(lambda: it.bank.ours.Predict(asked)) == "MODEL_NOT_FOUND"
    assert it.acme.ours.Predict(asked).outputs


def lists_models(it: Scene) -> None:
    assert [model.name for model in it.bank.client.models()] == ["mlp", "sum"]
    assert [model.name for model in it.acme.client.models()] == ["lstm", "sum"]
    assert [model.name for model in it.ops.client.models()] == ["lstm", "mlp", "sum"]


def gets_a_model(it: Scene) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        it.bank.ours.GetModel(pb.GetModelRequest(model="lstm"))
    assert info_of(raised.value).reason == "MODEL_NOT_FOUND"
    assert "mlp, sum" in raised.value.details()  # type: ignore[attr-defined]
    # As of one that is not there.
    with pytest.raises(grpc.RpcError) as absent:
        it.bank.ours.GetModel(pb.GetModelRequest(model="nope"))
    assert absent.value.details().replace("nope", "lstm") == raised.value.details()  # type: ignore[attr-defined]


def lists_sessions(it: Scene) -> None:
    def ids(caller: Caller, model: str = "") -> set[str]:
        return {session.id for session in caller.client.sessions(model)}

    assert not ids(it.bank)
    assert not ids(it.bank, "sum")
    assert {it.session.id, it.ticket.id} <= ids(it.acme) == ids(it.acme, "sum") == ids(it.ops)
    with it.bank.client.session("sum") as own:
        assert ids(it.bank) == {own.id} == ids(it.ops) - ids(it.acme)
    page = it.acme.ours.ListSessions(pb.ListSessionsRequest(page_size=1))
    # A place in another's list shows nothing of it.
    token = page.next_page_token
    assert not it.bank.ours.ListSessions(pb.ListSessionsRequest(page_token=token)).sessions


def closes(it: Scene) -> None:
    close = it.bank.ours.CloseSession
    assert refusal(lambda: close(pb.CloseSessionRequest(session_id=it.session.id))) == "SESSION_NOT_FOUND"
    stolen = pb.CloseSessionRequest(session_id=it.ticket.id, token=it.ticket.token)
    assert refusal(lambda: close(stolen)) == "SESSION_NOT_FOUND"
    with it.acme.client.session("sum") as session:
        session.step([1.0])
        assert it.ops.client.close_session(session.id) == 1


def infers(it: Scene) -> None:
    assert refusal(lambda: it.sequence(it.bank)) == "SEQUENCE_NOT_STARTED"
    assert it.sequence(it.bank, sequence_start=True) == 1.0
    assert it.sequence(it.bank, sequence_end=True) == 2.0
    assert (
        refusal(lambda: it.bank.oip.ModelInfer(infer(np.ones((1, 1, 3), np.float32), "lstm")))
        == "MODEL_NOT_FOUND"
    )


def infers_in_streams(it: Scene) -> None:
    asked = [
        infer(ONE, "sum", sequence_id=42),
        infer(ONE, "sum", sequence_id=42, sequence_start=True),
        infer(ONE, "sum", sequence_id=42, sequence_end=True),
        infer(np.ones((1, 1, 3), np.float32), "lstm"),
    ]
    first, *own, last = it.bank.oip.ModelStreamInfer(iter(asked))
    assert "SEQUENCE_NOT_STARTED" in first.error_message
    values = [np.frombuffer(each.infer_response.raw_output_contents[0], "<f4")[0] for each in own]
    assert values == [1.0, 2.0]
    assert "MODEL_NOT_FOUND" in last.error_message


def is_ready(it: Scene) -> None:
    assert not it.bank.oip.ModelReady(oip.ModelReadyRequest(name="lstm")).ready
    assert it.acme.oip.ModelReady(oip.ModelReadyRequest(name="lstm")).ready


def has_metadata(it: Scene) -> None:
    assert (
        refusal(lambda: it.bank.oip.ModelMetadata(oip.ModelMetadataRequest(name="lstm"))) == "MODEL_NOT_FOUND"
    )
    assert it.acme.oip.ModelMetadata(oip.ModelMetadataRequest(name="lstm")).versions == ["1"]


def has_configuration(it: Scene) -> None:
    assert refusal(lambda: it.bank.oip.ModelConfig(oip.ModelConfigRequest(name="lstm"))) == "MODEL_NOT_FOUND"


def has_figures(it: Scene) -> None:
    for name in ("", "sum", "lstm"):
        asked = oip.ModelStatisticsRequest(name=name)
        assert refusal(lambda: it.bank.oip.ModelStatistics(asked)) == "NOT_PERMITTED"  # noqa: B023
        assert it.ops.oip.ModelStatistics(asked).model_stats


def is_indexed(it: Scene) -> None:
    found = it.bank.oip.RepositoryIndex(oip.RepositoryIndexRequest()).models
    assert sorted(model.name for model in found) == ["mlp", "sum"]


def loads(it: Scene) -> None:
    asked = oip.RepositoryModelLoadRequest(model_name="sum")
    assert refusal(lambda: it.bank.oip.RepositoryModelLoad(asked)) == "NOT_PERMITTED"
    assert refusal(lambda: it.ops.oip.RepositoryModelLoad(asked)) == "MODEL_CONTROL_OFF"


def unloads(it: Scene) -> None:
    asked = oip.RepositoryModelUnloadRequest(model_name="sum")
    assert refusal(lambda: it.bank.oip.RepositoryModelUnload(asked)) == "NOT_PERMITTED"
    assert refusal(lambda: it.ops.oip.RepositoryModelUnload(asked)) == "MODEL_CONTROL_OFF"


def drains(it: Scene) -> None:
    assert refusal(lambda: it.bank.ours.Drain(pb.DrainRequest())) == "NOT_PERMITTED"
    assert refusal(lambda: it.ops.ours.Drain(pb.DrainRequest())) == "DRAIN_OFF"


def moves_sessions(it: Scene) -> None:
    asked = pb.DrainReplicaRequest(fraction=0.5)
    assert refusal(lambda: it.bank.ours.DrainReplica(asked)) == "NOT_PERMITTED"
    assert refusal(lambda: it.ops.ours.DrainReplica(asked)) == "NO_STORE"


def is_healthy(it: Scene) -> None:
    assert refusal(lambda: it.bank.health(health_pb2.HealthCheckRequest(service="lstm"))) == "UNKNOWN_SERVICE"
    assert it.ops.health(health_pb2.HealthCheckRequest(service="lstm")).status == 1


def nothing_is_anybodys(it: Scene) -> None:
    """The method says the same to all."""


OURS, THEIRS = "streamcell.v1.StreamCell", "inference.GRPCInferenceService"
MATRIX: dict[str, Callable[[Scene], None]] = {
    f"{OURS}.Stream": streams,
    f"{OURS}.StreamFrames": frames,
    f"{OURS}.Predict": predicts,
    f"{OURS}.ListModels": lists_models,
    f"{OURS}.GetModel": gets_a_model,
    f"{OURS}.ListSessions": lists_sessions,
    f"{OURS}.CloseSession": closes,
    f"{OURS}.Drain": drains,
    f"{OURS}.DrainReplica": moves_sessions,
    f"{THEIRS}.ServerLive": nothing_is_anybodys,
    f"{THEIRS}.ServerReady": nothing_is_anybodys,
    f"{THEIRS}.ServerMetadata": nothing_is_anybodys,
    f"{THEIRS}.ModelReady": is_ready,
    f"{THEIRS}.ModelMetadata": has_metadata,
    f"{THEIRS}.ModelConfig": has_configuration,
    f"{THEIRS}.ModelInfer": infers,
    f"{THEIRS}.ModelStreamInfer": infers_in_streams,
    f"{THEIRS}.ModelStatistics": has_figures,
    f"{THEIRS}.RepositoryIndex": is_indexed,
    f"{THEIRS}.RepositoryModelLoad": loads,
    f"{THEIRS}.RepositoryModelUnload": unloads,
    "grpc.health.v1.Health.Check": is_healthy,
    "grpc.health.v1.Health.Watch": is_healthy,  # test_who.py watches
    "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": nothing_is_anybodys,
}
