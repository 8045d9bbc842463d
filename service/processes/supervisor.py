"""The server in several processes: front ends answer calls, and one engine process runs the models."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

import structlog
from prometheus_client import CollectorRegistry, PlatformCollector

from streamcell.service.build_info import COMPILED
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.metrics.agent import agent_port
from streamcell.service.metrics.http_server import MetricsServer
from streamcell.service.metrics.log_metrics import LostLines
from streamcell.service.metrics.websocket_metrics import WebSocketFigures
from streamcell.service.settings import Settings
from streamcell.service.telemetry.start import metric_export
from streamcell.service.websocket.start import websocket_port

from .children import (
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
    UNFIT,
    Child,
    Supervised,
)  # fmt: skip
from .metrics_relay import RelayedMetrics
from .ports import reserve
from .process_metrics import ProcessFigures

_log = structlog.get_logger(__name__)

_SCRAPE_S = 5.0
_DRAIN_SPARE_S = 10.0


class Supervisor:
    """One server of several processes, from `start` to `stop`; an `AnyServer`, like `Server`."""

    def __init__(self, settings: Settings) -> None:
        """Reserve the port, start the processes and wait until the models are loaded.

        Raises:
            ModelLoadError: there is no model, one cannot be served, or the device is not available.
            OSError: a process cannot be started, the port cannot be bound, a certificate cannot be used, or this
                is not Linux.
        """
        if sys.platform != "linux":
            raise OSError(
                "front ends need Linux, for memfd, eventfd and SO_REUSEPORT; serve with --frontends 0"
            )
        self.settings = settings
        self.metrics_port = 0
        self.on_drain: Callable[[], None] = lambda: None
        websockets = WebSocketFigures()
        self._websocket = websocket_port(settings, websockets)
        self._reserved = reserve(settings.host, settings.port)
        self.port: int = self._reserved.getsockname()[1]
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._serving = False
        self._engine_ready = False
        self._loaded: Future[list[str]] = Future()  # the models of the first engine process
        self._fit: Child | None = None  # the engine process, once it has loaded the models
        self._linked: dict[Child, Child] = {}  # the engine process that each front end is linked to
        # Links in the making, by number: these front ends do not answer calls yet.
        self._links: dict[int, Child] = {}
        self._scrapes: dict[int, Future[bytes]] = {}
        self._drained = threading.Event()
        registry = CollectorRegistry()
        self._export = metric_export(settings, registry.collect)
        self._http = MetricsServer(settings, registry, self._ready)
        self._agent = agent_port(settings, self._ready)
        self._engine = Supervised(
            lambda: Child("engine", "engine", self._engine_said),
            self._engine_begun,
            self._engine_lost,
        )
        self._frontends = [self._frontend(number) for number in range(settings.frontends)]
        self._answering: list[Future[str]] = [Future() for _ in self._frontends]  # each front end's lane
        registry.register(RelayedMetrics(self._scrape, LostLines()))
        registry.register(ProcessFigures(self._engine, self._frontends))
        registry.register(websockets)
        PlatformCollector(registry=registry)
        try:
            self._engine.start()
            for frontend in self._frontends:
                frontend.start()
            self._loaded.result()
        except BaseException:
            self._stop_processes()
            raise

    def _frontend(self, number: int) -> Supervised:
        def start() -> Child:
            return Child("frontend", f"frontend-{number}", on_message)

        def on_message(child: Child, kind: int, link: int, body: bytes, fds: list[int]) -> None:
            if kind == READY:
                with self._lock:
                    self._links.pop(link, None)
            if kind in (READY, UNFIT):
                said = body.decode()
                _resolve(self._answering[number], said if kind == READY else OSError(said))

        def lost(child: Child) -> None:
            with self._lock:
                self._linked.pop(child, None)
                self._links = {link: each for link, each in self._links.items() if each is not child}
            _resolve(self._answering[number], OSError(f"{child.name} ended before it answered calls"))

        return Supervised(start, self._frontend_begun, lost)

    # Processes start and end

    def _engine_begun(self, child: Child) -> None:
        child.pipe.send(SETTINGS, 0, json.dumps({"settings": self.settings.model_dump(mode="json")}).encode())

    def _frontend_begun(self, child: Child) -> None:
        about = {"settings": self.settings.model_dump(mode="json"), "port": self.port}
        child.pipe.send(SETTINGS, 0, json.dumps(about).encode())
        self._link(child)

    def _engine_said(self, child: Child, kind: int, number: int, body: bytes, fds: list[int]) -> None:
        if kind == READY:
            with self._lock:
                self._fit = child
            _resolve(self._loaded, json.loads(body))
            for frontend in self._frontends:
                if frontend.child is not None:
                    self._link(frontend.child)
        elif kind == UNFIT:
            _log.error("models cannot be served", error=body.decode())
            _resolve(self._loaded, ModelLoadError(body.decode()))
        elif kind in (RINGS, ATTACHED):
            # If the front end has died, closing the descriptors tells its engine process.
            with self._lock:
                linked = self._links.get(number)
            if linked is not None:
                linked.pipe.send(kind, number, body, fds)
            for fd in fds:
                os.close(fd)
        elif kind == SCRAPED:
            waiting = self._scrapes.pop(number, None)
            if waiting is not None:
                _resolve(waiting, body)
        elif kind == DRAINED:
            self._drained.set()
        elif kind == DRAIN_ASKED:
            self.on_drain()
        elif kind == READINESS:
            self._engine_ready = bool(number)

    def _engine_lost(self, child: Child) -> None:
        self._engine_ready = False
        with self._lock:
            self._fit = None
            scrapes, self._scrapes = self._scrapes, {}
            self._linked = {
                frontend: engine for frontend, engine in self._linked.items() if engine is not child
            }
            self._links.clear()
        self._drained.set()
        _resolve(self._loaded, ModelLoadError("the engine process ended before it had loaded the models"))
        for waiting in scrapes.values():
            _resolve(waiting, OSError("the engine process ended"))

    def _link(self, frontend: Child) -> None:
        """Ask the engine process for a link to a front end, if both run and have none."""
        with self._lock:
            engine = self._fit
            if engine is None or not self._serving or self._linked.get(frontend) is engine:
                return
            self._linked[frontend] = engine
            number = next(self._numbers)
            self._links[number] = frontend
        engine.pipe.send(ATTACH, number)

    # The server

    def start(self) -> None:
        """Answer calls and report ready.

        Raises:
            OSError: a port cannot be bound, or the requested lane does not work.
        """
        settings = self.settings
        try:
            self._http.start()
            self.metrics_port = self._http.port
            self._serving = True
            for frontend in self._frontends:
                if frontend.child is not None:
                    self._link(frontend.child)
            lane = {answering.result() for answering in self._answering}
            more: dict[str, int] = {}
            if self._websocket is not None:
                self._websocket.start(self.port)
                more["websocket_port"] = self._websocket.port
            if self._agent is not None:
                self._agent.start()
                more["agent_port"] = self._agent.port
            if self._export is not None:
                self._export.start()
        except BaseException:
            self._stop_processes()
            raise
        _log.info(
            "serving",
            host=settings.host,
            port=self.port,
            metrics_host=settings.metrics_host or settings.host,
            metrics_port=self.metrics_port,
            frontends=settings.frontends,
            models=self._loaded.result(),
            lane=", ".join(sorted(lane)),
            device=settings.device,
            compiled=COMPILED,
            **more,
        )

    def _ready(self) -> bool:
        """True if the engine process takes new sessions and a front end answers calls."""
        with self._lock:
            answering = self._linked.keys() - self._links.values()
        return self._serving and self._engine_ready and bool(answering)

    def _scrape(self) -> bytes | None:
        """The engine process's packed metrics; None if it does not run or does not answer in time."""
        engine = self._fit
        if engine is None:
            return None
        number, waiting = next(self._numbers), Future[bytes]()
        self._scrapes[number] = waiting
        engine.pipe.send(SCRAPE, number)
        with suppress(OSError, TimeoutError):
            return waiting.result(_SCRAPE_S)
        return None

    def kill(self) -> None:
        """Kill the processes at once."""
        for kept in (*self._frontends, self._engine):
            kept.stop_restarting()
            if (child := kept.child) is not None:
                child.process.kill()

    def reload(self) -> None:
        """Reload certificates, which new connections use, and open the audit log anew."""
        for kept in (*self._frontends, self._engine):
            if kept.child is not None:
                kept.child.pipe.send(RELOAD)
        if self._websocket is not None:
            self._websocket.reload()
        self._http.reload()

    def stop(self) -> None:
        """Shut down: front ends take no new sessions, the engine process drains, all processes end.

        Returns once everything has stopped.
        """
        self._serving = False
        for kept in (self._engine, *self._frontends):
            kept.stop_restarting()
        for frontend in self._frontends:
            if frontend.child is not None:
                frontend.child.pipe.send(DRAIN)
        engine = self._engine.child
        if engine is not None:
            engine.pipe.send(DRAIN)
            self._drained.wait(self.settings.grace_s + _DRAIN_SPARE_S)
        if self._export is not None:
            self._export.stop()
        self._stop_processes()
        _log.info("stopped")

    def _stop_processes(self) -> None:
        """Stop the front ends first, after they have sent the last replies, then the engine process."""
        for kept in (*self._frontends, self._engine):
            kept.stop_restarting()
        stops = [threading.Thread(target=frontend.stop) for frontend in self._frontends]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()
        if self._websocket is not None:
            self._websocket.stop()
        self._engine.stop()
        self._http.stop()
        if self._agent is not None:
            self._agent.stop()
        self._reserved.close()


def _resolve(future: Future, result: object = None) -> None:  # type: ignore[type-arg]
    """Set a future's result, or its error, unless it has one already."""
    with suppress(InvalidStateError):
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
