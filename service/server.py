"""The server in one process: composes models, calls and metrics, and defines the order of a shutdown."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from streamcell.service.addresses import check_free
from streamcell.service.machine import measured
from streamcell.service.metrics.agent import agent_port
from streamcell.service.metrics.http_server import MetricsServer
from streamcell.service.metrics.websocket_metrics import WebSocketFigures
from streamcell.service.processes.process_metrics import OneProcess
from streamcell.service.telemetry.start import metric_export
from streamcell.service.transport.grpc_server import Transport
from streamcell.service.transport.lane_choice import choose_lane
from streamcell.service.websocket.start import websocket_port

from .build_info import COMPILED
from .model_host import ModelHost
from .settings import Settings
from .watchdog import Watchdog

_log = structlog.get_logger(__name__)


class Server:
    """Loads the models and serves them from `start` until `stop`.

    Building one loads everything and binds the ports, so errors show before it is ready.
    """

    def __init__(self, settings: Settings) -> None:
        """Load the models and bind the ports.

        Raises:
            ModelLoadError: there is no model, or one cannot be served; the text says which and why.
            DeviceError: the device is not available.
            ModuleNotFoundError: a package of an extra that the settings need is not installed.
            LaneError: the fast lane was asked for and does not work with this grpcio.
            OSError: a port cannot be bound, or a certificate cannot be used.
        """
        self.settings = settings
        check_free(settings.host, settings.port)
        websockets = WebSocketFigures()
        self._websocket = websocket_port(settings, websockets)
        self._registry = CollectorRegistry()
        self._export = metric_export(settings, self._registry.collect)
        self._http = MetricsServer(settings, self._registry, lambda: self.host.metrics.ready)
        self._agent = agent_port(settings, lambda: self.host.metrics.ready)
        # Before the engine threads exist, because loading a model holds the GIL for long.
        lane = choose_lane(settings.lane)
        self.host = ModelHost(settings, self._report_model, all_read=self._all_read)
        self.host.metrics.lane = lane.name
        self.host.memory_figures.here = lane.in_flight.figures
        self.on_drain: Callable[[], None] = lambda: None
        self.host.on_drain = self._drain_asked
        self.host.on_refuse = self._unhealthy
        self._transport = Transport(
            settings, self.host.services(lane), lane, self.host.metrics.error, spin_s=measured().spin_s
        )
        self.port = self._transport.port
        self._admin: Transport | None = None
        if settings.admin is not None:
            others = choose_lane(settings.lane)
            services = self.host.services(others)
            self._admin = Transport(settings, services, others, self.host.metrics.error, admin=True)
        self.host.report_to(self._registry)
        self._registry.register(OneProcess())
        self._registry.register(websockets)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._watchdog = Watchdog(
            lambda: {**self._transport.progress(), **self.host.progress()},
            settings.watchdog_s,
            self._stalled,
            ends=settings.watchdog_exit,
        )
        self.metrics_port = 0

    def _drain_asked(self) -> None:
        self.on_drain()

    def _unhealthy(self) -> None:
        for transport in self._transports:
            transport.drain()

    def _report_model(self, name: str, served: bool) -> None:
        for transport in self._transports:
            transport.report_model(name, served)

    @property
    def _transports(self) -> tuple[Transport, ...]:
        return (self._transport,) if self._admin is None else (self._transport, self._admin)

    def _stalled(self, thread: str, stalled: bool) -> None:
        self.host.metrics.stall("serving" if thread == "serving" else "engine", thread, stalled)
        for transport in self._transports:
            transport.stall(thread, stalled)

    def _all_read(self) -> bool:
        return self._transport.all_read()

    def start(self) -> None:
        """Answer calls and report ready."""
        self._http.start()
        self.metrics_port = self._http.port
        for transport in self._transports:
            transport.start()
            transport.report((model.file.name for model in self.host.models), serving=True)
        self.host.start()
        self._watchdog.start()
        more: dict[str, int] = {}
        if self._websocket is not None:
            self._websocket.start(self.port)
            more["websocket_port"] = self._websocket.port
        if self._agent is not None:
            self._agent.start()
            more["agent_port"] = self._agent.port
        if self._export is not None:
            self._export.start()
        _log.info(
            "serving",
            host=self.settings.host,
            port=self.port,
            metrics_host=self.settings.metrics_host or self.settings.host,
            metrics_port=self.metrics_port,
            models=[f"{model.file.name}/{model.file.version}" for model in self.host.models],
            lane=self.host.metrics.lane,
            device=self.settings.device,
            compiled=COMPILED,
            **more,
        )

    def kill(self) -> None:
        """Do nothing: the server has no other processes."""

    def reload(self) -> None:
        """Reload certificates and credentials for new connections and calls, and open the audit log again."""
        self.host.reload()
        self.host.watched.reload()
        for transport in self._transports:
            transport.reload()
        if self._websocket is not None:
            self._websocket.reload()
        self._http.reload()

    def stop(self) -> None:
        """Shut down in order: not ready, no new sessions, a grace period, typed ends, then the engines.

        Returns once everything has stopped; at once if no session is live.
        """
        self.host.drain()
        self._watchdog.stop()
        for transport in self._transports:
            transport.stop()
        if self._websocket is not None:
            self._websocket.stop()
        self.host.stop()
        if self._export is not None:
            self._export.stop()
        self._http.stop()
        if self._agent is not None:
            self._agent.stop()
        _log.info("stopped")
