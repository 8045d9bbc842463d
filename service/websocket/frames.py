"""Frames of both subprotocols: requests, replies, and the last frame of a call that has failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from streamcell.proto import pb
from streamcell.service.errors import MalformedMessage, ServiceError, cut

from .handshake import JSON, PROTO

Frame: TypeAlias = str | bytes


class Codec(NamedTuple):
    """Converts a subprotocol's frames into a call's messages, and its replies into frames."""

    request: Callable[[Frame], bytes]
    reply: Callable[[bytes], Frame]


def _from_json(frame: Frame) -> bytes:
    if not isinstance(frame, str):
        raise MalformedMessage(f"{JSON} takes text frames, and this one is binary", subprotocol=JSON)
    try:
        message: bytes = json_format.Parse(frame, pb.StreamRequest()).SerializeToString()
    except (json_format.Error, ValueError, TypeError, RecursionError) as error:
        raise MalformedMessage(
            f"expected a StreamRequest in protobuf's JSON mapping: {cut(str(error))}", subprotocol=JSON
        ) from error
    return message


def _to_json(message: bytes) -> str:
    text: str = json_format.MessageToJson(pb.StreamResponse.FromString(message), indent=None)
    return text


def _from_bytes(frame: Frame) -> bytes:
    if not isinstance(frame, bytes):
        raise MalformedMessage(
            f"{PROTO} takes binary frames, and an empty text frame to end", subprotocol=PROTO
        )
    return frame


CODECS: Mapping[str, Codec] = {
    JSON: Codec(_from_json, _to_json),
    PROTO: Codec(_from_bytes, lambda message: message),
}


class Failure(NamedTuple):
    """Why a call has ended."""

    code: int
    status: str
    reason: str
    message: str
    metadata: dict[str, str]

    def frame(self) -> str:
        """The last frame, in either subprotocol."""
        return json.dumps({"error": self._asdict()})


def of_error(error: ServiceError) -> Failure:
    """An error of this port's own."""
    return Failure(error.code.value[0], error.code.name, error.reason, str(error), error.facts)


def of_status(
    code: grpc.StatusCode, details: str | None, trailing: Sequence[tuple[str, str | bytes]]
) -> Failure:
    """How a call has ended, by its status and trailing metadata."""
    reason, facts = "", {}
    for key, value in trailing:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            info = error_details_pb2.ErrorInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    reason, facts = info.reason, dict(info.metadata)
    return Failure(code.value[0], code.name, reason or code.name, details or "", facts)
