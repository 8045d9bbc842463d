"""Has calls that come through front ends answered by the handlers that the server's services are made of."""

from __future__ import annotations

from concurrent import futures
from typing import Any

import grpc
import structlog

from .calls import FAULT, Handler, OnRequest, OpenStream, Trailing
from .tunnel_calls import TunnelCall, TunnelUnary

_log = structlog.get_logger(__name__)

_PLAIN_WORKERS = 4


class _StreamMethod(grpc.RpcMethodHandler):  # type: ignore[type-arg]
    def __init__(self, open_: OpenStream) -> None:
        self.open_ = open_


class _UnaryMethod(grpc.RpcMethodHandler):  # type: ignore[type-arg]
    def __init__(self, on_request: OnRequest) -> None:
        self.on_request = on_request


class TunnelLane:
    """Makes handlers for calls that come through pipes (a `calls.Lane`); plain handlers it calls on threads."""

    name = "tunnel"

    def __init__(self) -> None:
        self._pool = futures.ThreadPoolExecutor(_PLAIN_WORKERS, thread_name_prefix="calls")

    def stream(self, open_: OpenStream) -> Handler:
        """A bidirectional method."""
        return _StreamMethod(open_)

    def unary(self, on_request: OnRequest) -> Handler:
        """A unary method."""
        return _UnaryMethod(on_request)

    @staticmethod
    def is_unary(handler: Handler) -> bool:
        """Whether a handler that a tunnel made, or a plain one, is for unary calls."""
        return not isinstance(handler, _StreamMethod)

    def begin(self, handler: Handler, call: TunnelCall) -> None:
        """A stream begins."""
        assert isinstance(handler, _StreamMethod)
        try:
            call.handler = handler.open_(call)
        except Exception as error:
            call.fault(error)

    def request(self, handler: Handler, call: TunnelUnary, data: bytes) -> None:
        """A unary call has come."""
        if not isinstance(handler, _UnaryMethod):
            self._pool.submit(_plain, handler, call, data)
            return
        try:
            handler.on_request(call, data)
        except Exception as error:
            _log.error("unary handler failed", exc_info=error)
            call.fail(grpc.StatusCode.INTERNAL, FAULT)


class _Aborted(Exception):
    pass


class _Context:
    """What plain handlers use of grpcio's context."""

    def __init__(self) -> None:
        self.trailing: Trailing = ()
        self.status = (grpc.StatusCode.UNKNOWN, "")

    def set_trailing_metadata(self, trailing: Trailing) -> None:
        self.trailing = trailing

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.status = (code, details)
        raise _Aborted


def _plain(handler: Any, call: TunnelUnary, data: bytes) -> None:
    context = _Context()
    try:
        reply = handler.unary_unary(handler.request_deserializer(data), context)
        call.answer(handler.response_serializer(reply))
    except _Aborted:
        call.fail(*context.status, context.trailing)
    except Exception as error:
        _log.error("unary handler failed", exc_info=error)
        call.fail(grpc.StatusCode.INTERNAL, FAULT)
