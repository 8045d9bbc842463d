"""A valid message of each method, and how a server of the tests' usual models answers it."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from streamcell.proto import pb
from streamcell.proto.inference import oip

from . import mistakes
from .every_method import begin, ended, path


def _bytes(*messages: Any) -> tuple[bytes, ...]:
    return tuple(each.SerializeToString() for each in messages)


OURS, THEIRS = "streamcell.v1.StreamCell", "inference.GRPCInferenceService"
_LOAD = oip.RepositoryModelLoadRequest(model_name="lstm")
_UNLOAD = oip.RepositoryModelUnloadRequest(model_name="lstm")
_NAMED = oip.ModelMetadataRequest(name="lstm").SerializeToString()
# By the method's full name: its messages, and the answer, a typed reason or OK.
VALID: dict[str, tuple[tuple[bytes, ...], str]] = {
    f"{OURS}.Stream": (_bytes(mistakes.opening(), mistakes.steps(mistakes.GOOD)), "OK"),
    f"{OURS}.StreamFrames": (_bytes(mistakes.opening_frame(), mistakes.rows(bytes(24))), "OK"),
    f"{OURS}.Predict": (_bytes(mistakes.predict()), "OK"),
    f"{OURS}.ListModels": ((b"",), "OK"),
    f"{OURS}.GetModel": (_bytes(pb.GetModelRequest(model="lstm")), "OK"),
    f"{OURS}.CloseSession": (_bytes(pb.CloseSessionRequest(session_id="none")), "SESSION_NOT_FOUND"),
    f"{OURS}.ListSessions": ((b"",), "OK"),
    f"{OURS}.Drain": ((b"",), "DRAIN_OFF"),
    f"{OURS}.DrainReplica": (_bytes(pb.DrainReplicaRequest(fraction=0.5)), "NO_STORE"),
    f"{THEIRS}.ServerLive": ((b"",), "OK"),
    f"{THEIRS}.ServerReady": ((b"",), "OK"),
    f"{THEIRS}.ModelReady": ((_NAMED,), "OK"),
    f"{THEIRS}.ServerMetadata": ((b"",), "OK"),
    f"{THEIRS}.ModelMetadata": ((_NAMED,), "OK"),
    f"{THEIRS}.ModelInfer": (_bytes(mistakes.infer()), "OK"),
    f"{THEIRS}.ModelStreamInfer": (_bytes(mistakes.infer()), "OK"),
    f"{THEIRS}.ModelConfig": ((_NAMED,), "OK"),
    f"{THEIRS}.ModelStatistics": ((_NAMED,), "OK"),
    f"{THEIRS}.RepositoryIndex": ((b"",), "OK"),
    f"{THEIRS}.RepositoryModelLoad": (_bytes(_LOAD), "MODEL_CONTROL_OFF"),
    f"{THEIRS}.RepositoryModelUnload": (_bytes(_UNLOAD), "MODEL_CONTROL_OFF"),
    "grpc.health.v1.Health.Check": (_bytes(health_pb2.HealthCheckRequest(service="none")), "UNKNOWN_SERVICE"),
    "grpc.health.v1.Health.Watch": ((b"",), "OK"),
    "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": (
        _bytes(reflection_pb2.ServerReflectionRequest(list_services="")), "OK",
    ),
}  # fmt: skip


def answers_a_valid_message(channel: grpc.Channel, method: MethodDescriptor) -> None:
    """Fails unless the method answers as the table says, each message with one reply."""
    messages, wanted = VALID[method.full_name]
    call = begin(channel, path(method), *messages, half_close=method.name != "Watch")
    if method.name == "Watch":
        assert next(call)
        call.cancel()
    elif wanted == "OK":
        assert len(list(call)) == len(messages), path(method)
    else:
        assert ended(call)[1] == wanted, path(method)
