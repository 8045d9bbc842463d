"""One `ModelStreamInfer` call: requests of any sequences, answered in their order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from streamcell.service.access.pacing import Pace
from streamcell.service.errors import ServiceError, as_status
from streamcell.service.transport.calls import Call

from .infer import Infer, arrived
from .reply import streamed_error

if TYPE_CHECKING:
    from .requests import Key, ParsedRequest

_MOST_WAITING = 1024  # unanswered requests above which a stream is not read


class StreamEntry:
    """One message of a stream (an `IncomingRequest`). `reply` or the error is set once it is answered."""

    __slots__ = ("cancel", "id", "plan", "reply", "stream")

    def __init__(self, stream: InferStream, plan: ParsedRequest, id_: bytes) -> None:
        self.stream = stream
        self.plan = plan
        self.id = id_
        self.reply: bytes | ServiceError | None = None
        self.cancel: Callable[[], None] | None = None

    @property
    def peer(self) -> str:
        """The client's address."""
        return self.stream.peer

    @property
    def subject(self) -> str:
        """Who calls."""
        return self.stream.subject

    @property
    def gone(self) -> bool:
        """Whether the stream is over."""
        return self.stream.over

    def answer(self, tensors: list[bytes]) -> None:
        """Answer with these outputs, once earlier requests are answered."""
        self.cancel = None  # it refers to this entry: breaks the cycle
        self.reply = self.plan.answer.streamed(self.id, tensors)
        self.stream.flush()

    def fail(self, error: ServiceError, key: Key | None) -> None:
        """Answer with an error, once earlier requests are answered."""
        self.cancel = None
        self.reply = self.stream.refusal(self, error, key)
        self.stream.flush()

    def resume(self) -> None:
        """Resume reading the stream."""
        self.stream.resume()

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """As in `calls.Call`."""
        return self.stream.run_after_arrivals(callback)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Have `callback` called if the stream ends before the answer."""
        self.cancel = callback
        if self.stream.over:
            callback()


class InferStream:
    """One call's handler.

    Messages come on grpcio's thread, answers on those of the models' engines. A sequence outlives its stream.
    """

    def __init__(self, call: Call, infer: Infer, running: set[InferStream]) -> None:
        """Answer `call`; the stream is one of `running` until it is over."""
        self.peer = call.peer
        self.subject = call.caller.subject
        self.run_after_arrivals = call.run_after_arrivals
        self.over = False
        self._call = call
        self._infer = infer
        self._running = running
        running.add(self)
        self._lock = threading.Lock()
        self._entries: deque[StreamEntry] = deque()
        self._half_closed = self._full = self._ended = False
        grant = infer.context.grant
        self._pace = None if grant is None else Pace(grant.spend, call.resume)
        self._ending: ServiceError | None = None  # what the call ends with once its requests are answered
        # Triton's clients may ask for this: an error is the call's status and ends it.
        asked = dict(call.metadata()).get("triton_grpc_error", "")
        self._grpc_errors = str(asked).lower() == "true"

    # The call's side

    def on_message(self, data: bytes) -> bool:
        """Take one request; False if the stream should not be read further."""
        entries = self._entries
        found = self._infer.plans.find(data)
        if found is None:
            entry = StreamEntry(self, None, b"")  # type: ignore[arg-type]  # `read` finds its plan
            entries.append(entry)
            more = self._infer.read(entry, data) and self._has_room(entries)
            return more if self._pace is None else self._pace.after(0, more)
        plan, id_, payload = found
        entry = StreamEntry(self, plan, id_)
        entries.append(entry)
        sequence = plan.sequence
        if sequence is not None:
            # Nearly every message is a step of a live sequence.
            room = sequence.add(entry, arrived((payload,), plan.form.steps), self.run_after_arrivals)
            if room is not None:
                return room and (len(entries) < _MOST_WAITING or self._has_room(entries))
        more = self._infer.run(entry, (payload,), data)
        more = more and (len(entries) < _MOST_WAITING or self._has_room(entries))
        return more if self._pace is None else self._pace.after(0, more)

    def _has_room(self, entries: deque[StreamEntry]) -> bool:
        with self._lock:
            self._full = len(entries) >= _MOST_WAITING
            return not self._full

    def on_half_close(self) -> None:
        """The client sends no more requests: end once the last one is answered."""
        with self._lock:
            self._half_closed = True
        self.flush()

    def on_end(self, cancelled: bool) -> None:
        """The call is over. Requests that its sequences accepted still run; rows without a sequence do not."""
        self.over = True
        if self._pace is not None:
            self._pace.end()
        self._running.discard(self)
        with self._lock:
            entries = list(self._entries)
            self._entries.clear()
        for entry in entries:
            if (cancel := entry.cancel) is not None:
                cancel()

    # The answers' side

    def flush(self) -> None:
        """Send the answers that no unanswered earlier request holds back."""
        entries, call = self._entries, self._call
        failed: ServiceError | None = None
        resume = done = False
        with self._lock:
            while entries and not self._ended and (reply := entries[0].reply) is not None:
                entries.popleft()
                if isinstance(reply, bytes):
                    call.reply(reply)
                else:
                    failed, self._ended = reply, True
            if (self._half_closed or self._ending is not None) and not entries and not self._ended:
                done = self._ended = True
                failed = None if self._half_closed else self._ending
            if self._full and len(entries) < _MOST_WAITING // 2:
                self._full, resume = False, True
        if failed is not None:
            call.end(*as_status(failed))
        elif done:
            call.end()
        elif resume:
            self.resume()

    def refusal(self, entry: StreamEntry, error: ServiceError, key: Key | None) -> bytes | ServiceError:
        """The answer to a failed request: a message, or the call's status if the client asked for that."""
        if not self.over:
            self._infer.context.metrics.error(error)
        if self._grpc_errors:
            return error
        return streamed_error(error, entry.id, None if key is None else key[1])

    def resume(self) -> None:
        """Resume reading: there is room again."""
        if self._pace is None or self._pace.may_resume():
            self._call.resume()

    def end(self, error: ServiceError) -> None:
        """End the call with a server error, once all requests received are answered."""
        with self._lock:
            self._ending = error
        self.flush()
