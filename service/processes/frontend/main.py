"""A process that answers calls while another runs the models. It ends when the supervisor's socket closes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service import gc_tuning as garbage
from streamcell.service.access.identity import ANYONE
from streamcell.service.logs.configure import configure
from streamcell.service.processes.child_process import ChildProcess
from streamcell.service.processes.children import ATTACHED, DRAIN, READY, RELOAD, RINGS, SETTINGS, STOP, UNFIT
from streamcell.service.processes.pipe import Pipe
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import Limits
from streamcell.service.protocols.native.openings import is_resumable
from streamcell.service.protocols.native.stream import StreamSession
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings
from streamcell.service.transport.calls import Call, Handler, OnRequest, OpenStream, StreamHandler, UnaryCall
from streamcell.service.transport.grpc_server import Transport
from streamcell.service.transport.lane_choice import LaneError, choose_lane
from streamcell.service.watchdog import Watchdog

from .engine_link import FrontendLink
from .kept_frames import KeptFrames
from .kept_stream import KeptStream
from .kept_streams import KeptStreams
from .remote_model import RemoteModel, Reports
from .tunnel_calls import PassedStream, PassedUnary

if TYPE_CHECKING:
    from streamcell.service.telemetry.export import SpanExport

_SERVICE = pb.DESCRIPTOR.services_by_name["StreamCell"].full_name
_STREAM, _FRAMES = f"/{_SERVICE}/Stream", f"/{_SERVICE}/StreamFrames"

_R = TypeVar("_R", pb.StreamRequest, pb.FrameRequest)


class FrontendProcess(ChildProcess):
    """The gRPC server of one front end, and its link to the engine process."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__(pipe)
        self._reports = Reports()
        self._models: list[tuple[dict[str, Any], list[int]]] = []  # of the link that is being made
        self._transport: Transport | None = None
        self._watchdog: Watchdog | None = None
        self._draining = False
        self._spans: SpanExport | None = None
        self.link: FrontendLink  # a link whose engine process ended answers every call with ENGINE_LOST
        self.context: CallContext[RemoteModel]
        self.kept_streams: KeptStreams

    def on_message(self, kind: int, number: int, body: bytes, fds: list[int]) -> None:
        """Handle a message from the supervisor."""
        if kind == SETTINGS:
            about = json.loads(body)
            self._settings = settings = Settings(**about["settings"])
            self._port: int = about["port"]
            self.kept_streams = KeptStreams(settings, self._reports)
            configure(settings.log_level, settings.log_format)
            if settings.otlp_endpoint is not None:
                from streamcell.service.telemetry.export import SpanExport

                self._spans = SpanExport(settings.otlp_endpoint, settings.trace_ratio)
            try:
                self._lane = choose_lane(settings.lane)
                self._reports.in_flight = self._lane.in_flight.figures
            except LaneError as error:
                self._unfit(error)
        elif kind == RINGS:
            self._models.append((json.loads(body), fds))
        elif kind == ATTACHED:
            self._attach(number, json.loads(body), fds[0])
        elif kind == DRAIN:
            self._draining = True
            self.kept_streams.drain()
            if self._transport is not None:
                self._transport.drain()
                self.context.sessions.drain()
        elif kind == RELOAD:
            if self._transport is not None:
                self._transport.reload()
        elif kind == STOP:
            if self._watchdog is not None:
                self._watchdog.stop()
            if self._transport is not None:
                self._transport.stop()
            if self._spans is not None:
                self._spans.stop()
            self.stop()

    def _attach(self, number: int, about: dict[str, Any], fd: int) -> None:
        settings = self._settings
        models, self._models = self._models, []
        link = FrontendLink(Pipe(fd), about["process_number"], models, self._reports, settings.queue_messages)
        sessions = SessionTable(idle_timeout_s=settings.idle_timeout_s)
        if self._draining:
            sessions.drain()
        self.context = CallContext(link.table, sessions, self._reports, Limits.of(settings))
        self.link = link
        if self._transport is None:
            try:
                self._transport = Transport(
                    settings,
                    self._services(about["methods"]),
                    self._lane,
                    self._reports.error,
                    port=self._port,
                )
            except OSError as error:
                self._unfit(error)
                return
            garbage.tune_gc()
            self._transport.start()
            self._watch(self._transport)
        transport, served = self._transport, set(about["served"])

        def on_served(name: str, on: bool) -> None:
            served.add(name)
            transport.report_model(name, on)

        def on_lost() -> None:
            if self.link is link:
                transport.report(served, serving=False)

        link.start(self._lane.name, on_served, transport.stall, on_lost, transport.when_read)
        self.kept_streams.attach(link.tunnel)
        transport.report(about["served"], serving=True)
        self._pipe.send(READY, number, self._lane.name.encode())

    def _watch(self, transport: Transport) -> None:
        def changed(thread: str, stalled: bool) -> None:
            transport.stall(thread, stalled)
            self._reports.stall(thread, stalled)

        settings = self._settings
        self._watchdog = Watchdog(
            transport.progress, settings.watchdog_s, changed, ends=settings.watchdog_exit
        )
        self._watchdog.start()

    def _unfit(self, error: Exception) -> None:
        self._pipe.send(UNFIT, 0, str(error).encode())
        self.stop()

    def _services(self, methods: dict[str, bool]) -> dict[str, dict[str, Handler]]:
        """A handler for each method of the engine process; `methods` says whether it is unary."""
        services: dict[str, dict[str, Handler]] = {}
        for path, is_unary in methods.items():
            _, service, name = path.split("/")
            if path == _STREAM:
                handler = self._lane.stream(self._traced(name, lambda call: _Unrouted(call, self)))
            elif path == _FRAMES:
                handler = self._lane.stream(self._traced(name, lambda call: _UnroutedFrames(call, self)))
            elif is_unary:
                handler = self._lane.unary(self._traced_unary(name, self._pass_unary(path)))
            else:
                handler = self._lane.stream(self._traced(name, self._pass_stream(path)))
            services.setdefault(service, {})[name] = handler
        return services

    def _traced(self, method: str, open_: OpenStream) -> OpenStream:
        return open_ if self._spans is None else self._spans.tracing.stream(method, open_)

    def _traced_unary(self, method: str, on_request: OnRequest) -> OnRequest:
        # Control calls run no model.
        if self._spans is None or method not in ("Predict", "ModelInfer"):
            return on_request
        return self._spans.tracing.unary(method, on_request)

    def _pass_unary(self, path: str) -> Callable[[UnaryCall, bytes], None]:
        def on_request(call: UnaryCall, data: bytes) -> None:
            PassedUnary(call, self.link.tunnel, path, data)

        return on_request

    def _pass_stream(self, path: str) -> Callable[[Call], StreamHandler]:
        return lambda call: PassedStream(call, self.link.tunnel, path).begin()


class _Unrouted:
    """A `Stream` whose model is not known yet: its first message decides which handler replaces this one."""

    def __init__(self, call: Call, frontend: FrontendProcess) -> None:
        self._call = call
        self._frontend = frontend

    def on_half_close(self) -> None:
        """End a call without messages."""
        self._call.end()

    def on_end(self, cancelled: bool) -> None:
        """Nothing to do."""

    def on_message(self, data: bytes) -> bool:
        """Give the call to the handler of its kind."""
        frontend, call = self._frontend, self._call
        link = frontend.link
        request = _parsed(pb.StreamRequest, data, frontend)
        handler: StreamHandler
        if request is None:  # the handler reports it
            handler = StreamSession(call, frontend.context)
        elif frontend.kept_streams.keeps(request.open) and not link.tunnel.ended:
            return self._keep(KeptStream(call, request.open, data, frontend.kept_streams, _STREAM))
        elif (
            call.caller is not ANYONE  # the engine process keeps what belongs to tenants apart
            or is_resumable(request.open)
            or link.whole(request.open.model, request.open.version)
        ):
            handler = PassedStream(call, link.tunnel, _STREAM).begin()
        else:
            handler = StreamSession(call, frontend.context)
        call.hand_to(handler)
        return handler.on_message(data)

    def _keep(self, kept: KeptStream) -> bool:
        """Hand the call to `kept`, which has its first message."""
        self._call.hand_to(kept)
        self._call.read_on()
        kept.begin(self._frontend.link.tunnel)
        return True


class _UnroutedFrames(_Unrouted):
    """The same for `StreamFrames`."""

    def on_message(self, data: bytes) -> bool:
        """Give the call to the handler of its kind."""
        frontend, call = self._frontend, self._call
        tunnel = frontend.link.tunnel
        request = _parsed(pb.FrameRequest, data, frontend)
        if request is not None and frontend.kept_streams.keeps(request.open) and not tunnel.ended:
            return self._keep(KeptFrames(call, request.open, data, frontend.kept_streams, _FRAMES))
        handler = PassedStream(call, tunnel, _FRAMES).begin()
        call.hand_to(handler)
        return handler.on_message(data)


def _parsed(kind: type[_R], first: bytes, frontend: FrontendProcess) -> _R | None:
    """A stream's first message; None if it cannot be read."""
    if len(first) > frontend.context.limits.max_message_bytes:
        return None
    try:
        return kind.FromString(first)
    except DecodeError:
        return None
