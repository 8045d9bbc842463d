"""Control calls: a request's bytes in, one answer or one typed error out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from streamcell.service.access.identity import Identity
from streamcell.service.errors import MalformedMessage, MessageTooLarge, ServiceError, addressed, as_status

from .calls import FAULT, OnRequest, UnaryCall
from .control_thread import ControlThread

_log = structlog.get_logger(__name__)

_Request = TypeVar("_Request", bound=Message)
OnError: TypeAlias = Callable[[ServiceError], None]

# Requests of control calls, health and reflection take a few hundred bytes.
SMALL_BYTES = 64 * 1024


def parse(request_type: type[_Request], data: bytes, most_bytes: int = SMALL_BYTES) -> _Request:
    """The message that `data` holds.

    Raises:
        MessageTooLarge: it has more than `most_bytes`.
        MalformedMessage: it is no such message.
    """
    name = request_type.DESCRIPTOR.full_name
    if len(data) > most_bytes:
        raise MessageTooLarge(
            f"a {name} has at most {most_bytes} bytes, got {len(data)}", limit=most_bytes, bytes=len(data)
        )
    try:
        return request_type.FromString(data)
    except DecodeError as error:
        raise MalformedMessage(f"the message is not a {name}") from error


class Answering:
    """Makes the handlers of control calls: a method takes the request and who calls.

    A `ServiceError` that a method raises becomes the call's status.
    """

    def __init__(self, on_error: OnError, thread: ControlThread | None = None) -> None:
        """`on_error` is called for each error sent to a client; `thread` runs slow methods."""
        self._on_error = on_error
        self._control = thread or ControlThread()

    def now(self, request_type: type[_Request], method: Callable[[_Request, Identity], Message]) -> OnRequest:
        """A fast method: it runs on the thread that brings the message."""

        def on_request(call: UnaryCall, data: bytes) -> None:
            try:
                answer = method(parse(request_type, data), call.caller)
            except ServiceError as error:
                self._refuse(call, error)
            else:
                call.answer(answer.SerializeToString())

        return on_request

    def sliced(
        self,
        request_type: type[_Request],
        method: Callable[[_Request, Identity], Generator[None, None, Message]],
    ) -> OnRequest:
        """A slow method: a generator, whose slices run on the control thread."""

        def on_request(call: UnaryCall, data: bytes) -> None:
            try:
                self._control.submit(self._slices(call, method(parse(request_type, data), call.caller)))
            except ServiceError as error:
                self._refuse(call, error)

        return on_request

    def _slices(self, call: UnaryCall, slices: Generator[None, None, Message]) -> Iterator[None]:
        gone: list[bool] = []
        call.on_cancel(lambda: gone.append(True))
        while not gone:
            try:
                next(slices)
            except StopIteration as done:
                call.answer(done.value.SerializeToString())
                return
            except ServiceError as error:
                self._refuse(call, error)
                return
            except Exception as error:  # a bug ends its call
                _log.error("control call failed", exc_info=error)
                call.fail(grpc.StatusCode.INTERNAL, FAULT)
                return
            yield

    def later(
        self,
        request_type: type[_Request],
        method: Callable[[_Request, Identity], Future[None]],
        answer: Message,
        most_bytes: int,
    ) -> OnRequest:
        """A method that returns a future of its answer: no thread waits for it."""
        told = answer.SerializeToString()

        def on_request(call: UnaryCall, data: bytes) -> None:
            def finish(done: Future[None]) -> None:
                error = done.exception()
                if error is None:
                    call.answer(told)
                elif isinstance(error, ServiceError):
                    self._refuse(call, error)
                else:
                    call.fail(grpc.StatusCode.INTERNAL, FAULT)

            try:
                method(parse(request_type, data, most_bytes), call.caller).add_done_callback(finish)
            except ServiceError as error:
                self._refuse(call, error)

        return on_request

    def never(self, error: Callable[[], ServiceError]) -> OnRequest:
        """A method that the server does not have: whatever the request, `error` is its answer."""
        return lambda call, data: self._refuse(call, error())

    def _refuse(self, call: UnaryCall, error: ServiceError) -> None:
        self._on_error(addressed(error, call))
        call.fail(*as_status(error))
