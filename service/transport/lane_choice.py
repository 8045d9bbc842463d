"""Chooses the lane: the fast one if it passes a check at start-up, else the threaded one."""

from __future__ import annotations

from typing import Any

import grpc
import structlog

from .calls import Call, ServerLane, StreamHandler, UnaryCall
from .threaded_lane import ThreadedLane

_log = structlog.get_logger(__name__)

_PATIENCE_S = 30.0  # a lane that does not work says so at once; one that does may start on a busy machine
_SERVICE = "streamcell.selfcheck"


class LaneError(RuntimeError):
    """The requested lane does not work with this grpcio."""


def choose_lane(requested: str = "auto") -> ServerLane:
    """The lane to use.

    Args:
        requested: "auto", "fast" or "threaded".

    Raises:
        LaneError: "fast" was asked for and fails its check.
        ValueError: there is no such lane.
    """
    if requested not in ("auto", "fast", "threaded"):
        raise ValueError(f'expected the lane "auto", "fast" or "threaded", got {requested!r}')
    if requested == "threaded":
        return ThreadedLane()
    try:
        from .fast_lane import FastLane

        lane = FastLane()
        check(lane)
    except Exception as error:  # a changed grpcio may raise anything
        if requested == "fast":
            raise LaneError(
                f"the fast lane does not work with grpcio {grpc.__version__}: {error!r}"
            ) from error
        _log.warning("fast lane unusable, using threads", grpcio=grpc.__version__, error=repr(error))
        return ThreadedLane()
    return lane


class _Echo:
    def __init__(self, call: Call) -> None:
        self._call = call

    def on_message(self, data: bytes) -> bool:
        if data == b"fail":
            self._call.end(grpc.StatusCode.ABORTED, "asked to", (("reason", "check"),))
        else:
            self._call.reply(data)
        return True

    def on_half_close(self) -> None:
        self._call.end()

    def on_end(self, cancelled: bool) -> None:
        pass


def check(lane: ServerLane) -> None:
    """Run streams and unary calls, answered and failed, through `lane` on a real server of its own.

    Raises:
        LaneError, grpc.RpcError: an answer was not as expected, or did not come in time.
    """

    def open_(call: Call) -> StreamHandler:
        return _Echo(call)

    def reverse(call: UnaryCall, data: bytes) -> None:
        if data == b"fail":
            call.fail(grpc.StatusCode.ABORTED, "asked to", (("reason", "check"),))
        else:
            call.answer(data[::-1])

    server = lane.server()
    methods = {"Stream": lane.stream(open_), "Unary": lane.unary(reverse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        # Ignore a proxy from the environment.
        options = (("grpc.enable_http_proxy", 0),)
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            stream: Any = channel.stream_stream(f"/{_SERVICE}/Stream")
            unary: Any = channel.unary_unary(f"/{_SERVICE}/Unary")
            sent = [b"%d" % number for number in range(40)]
            _expect(sent, list(stream(iter(sent), timeout=_PATIENCE_S)))
            call = stream(iter([b"a", b"fail"]), timeout=_PATIENCE_S)
            _expect(b"a", next(call))
            _expect(grpc.StatusCode.ABORTED, call.code())
            _expect("check", dict(call.trailing_metadata()).get("reason"))
            _expect(b"cba", unary(b"abc", timeout=_PATIENCE_S))
            _expect(grpc.StatusCode.ABORTED, unary.future(b"fail", timeout=_PATIENCE_S).code())
    finally:
        stopped = server.stop(0).wait(_PATIENCE_S)
    if not stopped:
        raise LaneError(f"the server had not stopped after {_PATIENCE_S} s")


def _expect(expected: object, came: object) -> None:
    if expected != came:
        raise LaneError(f"expected {expected!r}, got {came!r}")
