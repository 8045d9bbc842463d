"""Every call that the server answers, by its descriptors, and what each does with bytes that make no sense."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from streamcell.proto import pb
from streamcell.proto.inference import oip
from streamcell.service.transport.answering import SMALL_BYTES

WAIT_S = 60.0
FILES = (pb.DESCRIPTOR, oip.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
METHODS: list[MethodDescriptor] = [
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
]

MESSAGE_BYTES, INFER_BYTES = 2 * SMALL_BYTES, 4 * SMALL_BYTES
# All other methods take SMALL_BYTES.
LIMITS = {
    "Stream": MESSAGE_BYTES, "StreamFrames": MESSAGE_BYTES, "Predict": MESSAGE_BYTES,
    "RepositoryModelLoad": MESSAGE_BYTES, "RepositoryModelUnload": MESSAGE_BYTES,
    "ModelInfer": INFER_BYTES, "ModelStreamInfer": INFER_BYTES,
}  # fmt: skip
# Of a server whose calls have four seconds for their first message, and whose limits are no core's.
FLAGS = (
    "--first-message-s", "4", "--max-message-bytes", str(MESSAGE_BYTES), "--max-infer-bytes", str(INFER_BYTES),
)  # fmt: skip


def path(method: MethodDescriptor) -> str:
    """Its name on the wire."""
    return f"/{method.containing_service.full_name}/{method.name}"


@contextmanager
def apart(target: str) -> Iterator[grpc.Channel]:
    """A channel with a connection of its own."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def begin(channel: grpc.Channel, where: str, *messages: bytes, half_close: bool = False) -> Any:
    """A call that sends `messages` and then, unless it half-closes, nothing more."""
    feed: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    for message in messages:
        feed.put(message)
    if half_close:
        feed.put(None)
    call: Any = channel.stream_stream(where)
    return call(iter(feed.get, None), timeout=WAIT_S)


def info_of(error: Any) -> error_details_pb2.ErrorInfo:
    """The typed reason and facts of an error; fails where it has none."""
    trailing = dict(error.trailing_metadata() or ())
    assert "grpc-status-details-bin" in trailing, (error.code(), error.details())
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(trailing["grpc-status-details-bin"]).details[0].Unpack(info)
    return info


def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    """A call's status code and typed reason; fails where it ended well."""
    with pytest.raises(grpc.RpcError):
        list(call)
    return call.code(), info_of(call).reason


def tells_of_bytes_that_are_no_message(channel: grpc.Channel, method: MethodDescriptor) -> None:
    """Fails unless the method says that they are none."""
    call = begin(channel, path(method), b"\xff\xff\xff", half_close=True)
    if method.name == "ModelStreamInfer":  # errors are answers there
        (answer,) = map(oip.ModelStreamInferResponse.FromString, call)
        assert "INVALID_ARGUMENT MALFORMED_MESSAGE" in answer.error_message
    else:
        assert ended(call) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE"), path(method)


def has_its_own_limit(channel: grpc.Channel, method: MethodDescriptor) -> None:
    """Fails unless the method takes a message as long as it may be, and refuses one that is a byte longer."""
    limit = LIMITS.get(method.name, SMALL_BYTES)
    infers = limit == INFER_BYTES
    named = oip.ModelInferRequest(model_name="lstm").SerializeToString() if infers else b""
    # With a field that nobody knows, whose tag and length take 8 bytes.
    for size in (limit, limit + 1):
        data = named + _unknown_field(size - 8 - len(named))
        assert len(data) == size
        call = begin(channel, path(method), data, half_close=True)
        if size > limit and method.name == "ModelStreamInfer":  # errors are answers there
            (answer,) = map(oip.ModelStreamInferResponse.FromString, call)
            assert "MESSAGE_TOO_LARGE" in answer.error_message
        elif size > limit:
            assert ended(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"), path(method)
        elif method.name == "Watch":
            assert next(call)
            call.cancel()
        else:
            assert _outcome(call) != "MESSAGE_TOO_LARGE", path(method)


def all_are_ended_if_they_send_nothing(channel: grpc.Channel) -> None:
    """Fails unless a call of each method is ended for want of a first message."""
    calls = [begin(channel, path(method)) for method in METHODS]
    for call, method in zip(calls, METHODS, strict=True):
        assert ended(call) == (grpc.StatusCode.DEADLINE_EXCEEDED, "NO_MESSAGE"), path(method)


def _unknown_field(size: int) -> bytes:
    """Field 100,000 with `size` bytes; its tag has three bytes, its length is written with five."""
    length = [size >> 7 * at & 127 | 128 for at in range(4)] + [size >> 28]
    return bytes(
        (100_000 << 3 & 127 | 2 | 128, 100_000 >> 4 & 127 | 128, 100_000 >> 11, *length, *bytes(size))
    )


def _outcome(call: Any) -> str:
    """How a call ended: its typed reason, or OK."""
    try:
        list(call)
    except grpc.RpcError as error:
        return info_of(error).reason
    return "OK"
