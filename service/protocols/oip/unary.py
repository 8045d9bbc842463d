"""One `ModelInfer` call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from streamcell.service.errors import ServiceError, addressed, as_status
from streamcell.service.transport.calls import UnaryCall

from .infer import Infer

if TYPE_CHECKING:
    from .requests import Key, ParsedRequest


class UnaryEntry:
    """One `ModelInfer` call (an `IncomingRequest`)."""

    __slots__ = ("_call", "_infer", "id", "peer", "plan")

    gone = True  # a unary caller may not call again

    def __init__(self, call: UnaryCall, infer: Infer, plan: ParsedRequest, id_: bytes) -> None:
        self.peer = call.peer
        self.plan = plan
        self.id = id_
        self._call = call
        self._infer = infer

    @property
    def subject(self) -> str:
        """Who calls."""
        return self._call.caller.subject

    def answer(self, tensors: list[bytes]) -> None:
        """Answer with these outputs."""
        self._call.answer(self.plan.answer.message(self.id, tensors))

    def fail(self, error: ServiceError, key: Key | None) -> None:
        """End the call with an error."""
        self._infer.context.metrics.error(addressed(error, self._call))
        self._call.fail(*as_status(error))

    def resume(self) -> None:
        """A unary call has nothing more to read."""

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """As in `calls.UnaryCall`."""
        return self._call.run_after_arrivals(callback)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """As in `calls.UnaryCall`."""
        self._call.on_cancel(callback)


def infer_once(call: UnaryCall, data: bytes, infer: Infer) -> None:
    """Answer one `ModelInfer` request."""
    found = infer.plans.find(data)
    if found is None:
        infer.read(UnaryEntry(call, infer, None, b""), data)  # type: ignore[arg-type]  # `read` finds its plan
        return
    plan, id_, payload = found
    infer.run(UnaryEntry(call, infer, plan, id_), (payload,), data)
