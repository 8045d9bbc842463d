"""No call of any method passes without a credential, and nothing but a credential says who calls."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2

from streamcell.client import connect
from streamcell.client.errors import NotAuthenticated, NotPermitted
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb, rpc
from tests.support.callers import channel_of, channel_with
from tests.support.every_method import METHODS, begin, ended, path
from tests.support.tokens import bearer
from tests.support.valid_messages import VALID
from tests.support.waiting import waited

PUBLIC = "grpc.health.v1.Health"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.conformance
@pytest.mark.parametrize("metadata", [(), bearer("token-of-nobody"), (("x-streamcell-tenant", "acme"),)])
def test_every_method_but_health_asks_who_calls(tenants: ServerProcess, metadata: Any) -> None:
    with channel_with(tenants.target, metadata) as channel:
        for method in METHODS:
            if method.containing_service.full_name != PUBLIC:
                call = begin(channel, path(method), *VALID[method.full_name][0], half_close=True)
                assert ended(call) == (UNAUTHENTICATED, "NOT_AUTHENTICATED"), path(method)


@pytest.mark.conformance
def test_a_refused_stream_is_counted_and_takes_nothing(tenants: ServerProcess) -> None:
    before = tenants.metric("streamcell_errors_total", reason="NOT_AUTHENTICATED")
    for _ in range(3):
        with pytest.raises(NotAuthenticated), connect(tenants.target) as client, client.session("sum"):
            pass
    assert waited(lambda: tenants.metric("streamcell_errors_total", reason="NOT_AUTHENTICATED") >= before + 3)
    with (
        pytest.raises(NotPermitted, match="'none'"),
        connect(tenants.target, metadata=bearer("token-of-lost")) as client,
    ):
        client.models()


@pytest.mark.conformance
def test_probes_have_no_credential_and_learn_of_the_server_alone(tenants: ServerProcess) -> None:
    def asked(channel: grpc.Channel, service: str) -> str:
        call = begin(
            channel,
            f"/{PUBLIC}/Check",
            health_pb2.HealthCheckRequest(service=service).SerializeToString(),
            half_close=True,
        )
        try:
            (answer,) = map(health_pb2.HealthCheckResponse.FromString, call)
        except grpc.RpcError as error:
            return error.code().name  # type: ignore[attr-defined,no-any-return]
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def watched(channel: grpc.Channel, service: str) -> str:
        call = begin(
            channel, f"/{PUBLIC}/Watch", health_pb2.HealthCheckRequest(service=service).SerializeToString()
        )
        answer = health_pb2.HealthCheckResponse.FromString(next(call))
        call.cancel()
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    with channel_with(tenants.target, ()) as nobody, channel_of(tenants.target, "feed") as feed:
        for service in ("", "streamcell.v1.StreamCell"):
            assert asked(nobody, service) == watched(nobody, service) == "SERVING"
        assert (asked(nobody, "lstm"), watched(nobody, "lstm")) == ("NOT_FOUND", "SERVICE_UNKNOWN")
        assert (asked(feed, "lstm"), watched(feed, "lstm")) == ("SERVING", "SERVING")
        assert (asked(feed, "mlp"), watched(feed, "mlp")) == ("NOT_FOUND", "SERVICE_UNKNOWN")


FORGED = (
    ("x-streamcell-tenant", "acme"), ("x-streamcell-caller", '["acme", "feed", true]'), ("tenant", "acme"),
    ("caller", "acme"), ("identity", '["acme", "feed", true]'), ("x-forwarded-user", "ops"),
    ("authorization-bin", b"Bearer token-of-ops"), ("x-authorization", "Bearer token-of-ops"),
)  # fmt: skip


@pytest.mark.conformance
def test_no_other_metadata_say_who_calls(tenants: ServerProcess) -> None:
    with connect(tenants.target, metadata=bearer("token-of-feed")) as acme, acme.session("sum") as session:
        session.step([1.0])
        with channel_with(tenants.target, (*FORGED, *bearer("token-of-desk"))) as channel:
            stub: Any = rpc.StreamCellStub(channel)  # type: ignore[no-untyped-call]
            assert not stub.ListSessions(pb.ListSessionsRequest()).sessions
            with pytest.raises(grpc.RpcError) as raised:
                stub.CloseSession(pb.CloseSessionRequest(session_id=session.id))
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        assert session.step([1.0]) == 2.0


@pytest.mark.conformance
def test_two_tokens_are_none(tenants: ServerProcess) -> None:
    with channel_with(tenants.target, (*bearer("token-of-desk"), *bearer("token-of-feed"))) as channel:
        method: MethodDescriptor = next(each for each in METHODS if each.name == "ListSessions")
        assert ended(begin(channel, path(method), b"", half_close=True)) == (
            UNAUTHENTICATED,
            "NOT_AUTHENTICATED",
        )
