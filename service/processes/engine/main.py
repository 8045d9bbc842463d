"""The process that runs the models while front ends answer the calls. It ends when the supervisor's socket closes."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Sequence

import structlog
from prometheus_client import CollectorRegistry, GCCollector

from streamcell.card import telemetry  # noqa: F401  # before ONNX Runtime is imported
from streamcell.service import gc_tuning as garbage
from streamcell.service.denormals import flush_denormals
from streamcell.service.load_errors import DeviceError, ModelLoadError
from streamcell.service.logs.configure import configure
from streamcell.service.model_host import ModelHost
from streamcell.service.processes.child_process import ChildProcess
from streamcell.service.processes.children import (
    ATTACH,
    ATTACHED,
    DRAIN,
    DRAIN_ASKED,
    DRAINED,
    READINESS,
    READY,
    RELOAD,
    RINGS,
    SCRAPE,
    SCRAPED,
    SETTINGS,
    STOP,
    UNFIT,
)
from streamcell.service.processes.event_wakeup import EventWakeup
from streamcell.service.processes.metrics_relay import pack_families
from streamcell.service.processes.pipe import Pipe
from streamcell.service.settings import Settings
from streamcell.service.threads import NoThread, started
from streamcell.service.transport.calls import Handler
from streamcell.service.transport.grpc_server import Transport
from streamcell.service.transport.lane_choice import LaneError, choose_lane
from streamcell.service.watchdog import Watchdog

from .frontend_link import Link
from .ring_sessions import RingSessions
from .tunnel_lane import TunnelLane

_log = structlog.get_logger(__name__)

_READ_S = 10.0
_CATCH_UP_S = 1.0  # that a call for a session which nobody knows may wait for the rings


class EngineProcess(ChildProcess):
    """The models' host and the links to the front ends."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__(pipe)
        flush_denormals()
        self._host: ModelHost | None = None
        self._ring_sessions: dict[tuple[str, str], RingSessions] = {}
        self._lane = TunnelLane()
        self._methods: dict[str, Handler] = {}
        self._links: list[Link] = []
        self._registry = CollectorRegistry()
        self._scraping: threading.Thread | None = None
        self._process_numbers = itertools.count(2)
        self._watchdog: Watchdog | None = None
        self._admin: Transport | None = None  # the operators' address, if they have one

    def on_message(self, kind: int, number: int, body: bytes, fds: Sequence[int]) -> None:
        """Handle a message from the supervisor."""
        if kind == SETTINGS:
            self._load(Settings(**json.loads(body)["settings"]))
        elif kind == ATTACH:
            self._attach(number)
        elif kind == SCRAPE:
            self._scrape(number)
        elif kind == DRAIN:
            try:
                started("drain", self._drain)
            except NoThread:
                self._drain()  # other messages wait for it
        elif kind == RELOAD:
            if self._host is not None:
                self._host.reload()
            if self._admin is not None:
                self._admin.reload()
        elif kind == STOP:
            if self._admin is not None:
                self._admin.stop()
            if self._host is not None:
                self._host.stop()
            self.stop()

    def _load(self, settings: Settings) -> None:
        configure(settings.log_level, settings.log_format)
        # With model control, front ends do not know the models: they pass all calls on.
        rings = settings.model_control == "none"
        try:
            host = self._host = ModelHost(
                settings,
                self._served,
                wakeup=EventWakeup if rings else lambda: None,
                all_read=self._all_read,
            )
            if settings.admin is not None:  # operators need no front end between them and the models
                lane = choose_lane(settings.lane)
                self._admin = Transport(settings, host.services(lane), lane, host.metrics.error, admin=True)
        except (DeviceError, LaneError, ModelLoadError, OSError) as error:
            self._pipe.send(UNFIT, body=str(error).encode(errors="backslashreplace"))
            self.stop()
            return
        for model in host.models if rings else ():
            sessions = RingSessions(model, host.sessions)
            self._ring_sessions[model.file.name, model.file.version] = sessions
            sessions.serve(settings.non_finite == "allow")
        host.sessions.catch_up = lambda: self._rings_read(_CATCH_UP_S)
        for service, handlers in host.services(self._lane).items():
            self._methods.update({f"/{service}/{name}": handler for name, handler in handlers.items()})
        host.on_drain = lambda: self._pipe.send(DRAIN_ASKED)
        host.report_to(self._registry)
        host.metrics.readiness.watch(lambda on: self._pipe.send(READINESS, int(on)))
        GCCollector(registry=self._registry)
        garbage.tune_gc()
        host.start()
        if self._admin is not None:
            self._admin.start()
            self._admin.report((model.file.name for model in host.models), serving=True)
        self._watchdog = Watchdog(
            host.progress, settings.watchdog_s, self._stalled, ends=settings.watchdog_exit
        )
        self._watchdog.start()
        served = [f"{model.file.name}/{model.file.version}" for model in host.models]
        self._pipe.send(READY, 0, json.dumps(served).encode())

    def _all_read(self) -> bool:
        """Wait until all data in the front ends' sockets is in the sessions' queues; False if that takes too long."""
        links = tuple(self._links)
        for link in links:
            link.ask()
        until_s = time.monotonic() + _READ_S
        return all(
            link.all_read(max(0.0, until_s - time.monotonic())) for link in links
        ) and self._rings_read(until_s - time.monotonic())

    def _rings_read(self, patience_s: float) -> bool:
        """Wait until the engine threads have read what the rings hold now; False if that takes too long."""
        until_s = time.monotonic() + patience_s
        return all(
            sessions.all_read(max(0.0, until_s - time.monotonic()))
            for sessions in self._ring_sessions.values()
        )

    def _served(self, name: str, served: bool) -> None:
        for link in tuple(self._links):
            link.report_served(name, served)
        if self._admin is not None:
            self._admin.report_model(name, served)

    def _stalled(self, thread: str, stalled: bool) -> None:
        assert self._host is not None
        self._host.metrics.stall("engine", thread, stalled)
        if self._admin is not None:
            self._admin.stall(thread, stalled)
        for link in tuple(self._links):
            link.report_stalled(thread, stalled)

    def _attach(self, number: int) -> None:
        """Make one front end's rings and pipe and send them to the supervisor as link `number`."""
        assert self._host is not None
        process_number = next(self._process_numbers)
        ours, theirs = socket.socketpair()
        for (name, version), sessions in self._ring_sessions.items():
            requests, replies = sessions.attach(process_number)
            file = sessions.model.file
            about = {
                "name": name,
                "version": version,
                "signature": file.signature.model_dump(mode="json"),
                "unparsed": file.generation is not None or bool(file.signature.open_inputs),
                "max_sessions": sessions.model.max_sessions,
                "max_batch": sessions.model.max_batch,
                "max_chunk": sessions.model.max_chunk,
                "first_slot": sessions.model.engine.pool.first_slot,
            }
            fds = (sessions.capacity.memory, *requests.fds, *replies.fds)
            self._pipe.send(RINGS, number, json.dumps(about).encode(), fds)
        link = Link(
            Pipe(ours.detach()), process_number, self._host, self._ring_sessions, self._lane, self._methods
        )
        self._links.append(link)
        methods = {name: self._lane.is_unary(handler) for name, handler in self._methods.items()}
        names = sorted({model.file.name for model in self._host.models})
        about = {"process_number": process_number, "methods": methods, "served": names}
        self._pipe.send(ATTACHED, number, json.dumps(about).encode(), (theirs.fileno(),))
        theirs.close()
        link.start(lambda: self._links.remove(link))
        for thread in self._host.metrics.stalled("engine"):
            link.report_stalled(thread, True)

    def _scrape(self, number: int) -> None:
        """Send the metrics from another thread: collecting them pauses, and other messages must not wait."""

        def collect() -> None:
            self._pipe.send(SCRAPED, number, pack_families(self._registry))

        if self._scraping is None or not self._scraping.is_alive():
            try:
                self._scraping = started("scrape", collect)
            except NoThread as error:  # the page of metrics goes without these
                _log.warning("metrics not collected", reason=str(error))

    def _drain(self) -> None:
        if self._admin is not None:
            self._admin.drain()
        if self._host is not None:
            self._host.drain()
        if self._watchdog is not None:
            self._watchdog.stop()
        self._pipe.send(DRAINED)
