"""Control calls that the audit log records: who asked for what, before the server does or refuses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from streamcell.proto import pb
from streamcell.proto.inference import oip
from streamcell.service.logs.audit import Audit
from streamcell.service.transport.answering import SMALL_BYTES, Answering, OnError
from streamcell.service.transport.calls import OnRequest, UnaryCall
from streamcell.service.transport.control_thread import ControlThread

# The event of each request, and its field that names what it is about.
ASKED: dict[type[Message], tuple[str, str]] = {
    pb.CloseSessionRequest: ("close_asked", "session_id"),
    pb.DrainRequest: ("drain_asked", ""),
    pb.DrainReplicaRequest: ("drain_replica_asked", ""),
    oip.RepositoryModelLoadRequest: ("load_asked", "model_name"),
    oip.RepositoryModelUnloadRequest: ("unload_asked", "model_name"),
}


class AuditedAnswering(Answering):
    """`Answering` that records the requests in `ASKED`."""

    def __init__(self, audit: Audit, on_error: OnError, thread: ControlThread) -> None:
        super().__init__(on_error, thread)
        self._audit = audit

    def now(self, request_type: type[Any], method: Callable[..., Message]) -> OnRequest:
        """As `Answering.now`."""
        return self._told(request_type, super().now(request_type, method))

    def later(
        self, request_type: type[Any], method: Callable[..., Any], answer: Message, most_bytes: int
    ) -> OnRequest:
        """As `Answering.later`."""
        return self._told(request_type, super().later(request_type, method, answer, most_bytes))

    def _told(self, request_type: type[Message], answer: OnRequest) -> OnRequest:
        if request_type not in ASKED:
            return answer
        event, field = ASKED[request_type]

        def on_request(call: UnaryCall, data: bytes) -> None:
            what = ""
            if len(data) <= SMALL_BYTES:
                try:
                    what = getattr(request_type.FromString(data), field, "")
                except DecodeError:  # it will be refused as such
                    return answer(call, data)
            subject = {"session_id": "session", "model_name": "model"}.get(field, "what")
            caller = call.caller
            self._audit.asked(
                event, peer=call.peer, tenant=caller.tenant, by=caller.subject, **{subject: what}
            )
            return answer(call, data)

        return on_request
