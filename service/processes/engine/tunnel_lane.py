"""Gives the calls passed on by front ends to the handlers of the server's services."""

from __future__ import annotations

import grpc
import structlog

from streamcell.service.transport.calls import FAULT, Handler, OnRequest, OpenStream

from .tunnel_calls import TunnelCall, TunnelUnary

_log = structlog.get_logger(__name__)


class _StreamMethod(grpc.RpcMethodHandler):  # type: ignore[type-arg]
    def __init__(self, open_: OpenStream) -> None:
        self.open_ = open_


class _UnaryMethod(grpc.RpcMethodHandler):  # type: ignore[type-arg]
    def __init__(self, on_request: OnRequest) -> None:
        self.on_request = on_request


class TunnelLane:
    """Makes handlers for calls that arrive through pipes (a `calls.Lane`)."""

    name = "tunnel"

    def stream(self, open_: OpenStream, *, public: bool = False) -> Handler:
        """A bidirectional method. The front end has established who calls."""
        return _StreamMethod(open_)

    def unary(self, on_request: OnRequest, *, public: bool = False) -> Handler:
        """A unary method."""
        return _UnaryMethod(on_request)

    @staticmethod
    def is_unary(handler: Handler) -> bool:
        """True if a handler made by a `TunnelLane` is for unary calls."""
        return isinstance(handler, _UnaryMethod)

    def begin(self, handler: Handler, call: TunnelCall) -> None:
        """Give a new stream to its handler."""
        assert isinstance(handler, _StreamMethod)
        try:
            call.handler = handler.open_(call)
        except Exception as error:
            call.fault(error)

    def request(self, handler: Handler, call: TunnelUnary, data: bytes) -> None:
        """Give a unary call to its handler."""
        assert isinstance(handler, _UnaryMethod)
        try:
            handler.on_request(call, data)
        except Exception as error:
            _log.error("unary handler failed", exc_info=error)
            call.fail(grpc.StatusCode.INTERNAL, FAULT)
