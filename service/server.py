"""The server in one process: composes models, calls and metrics, and defines the order of a shutdown."""

from __future__ import annotations

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from streamcell.service.machine import measured
from streamcell.service.metrics.http_server import MetricsServer
from streamcell.service.processes.process_metrics import OneProcess
from streamcell.service.transport.grpc_server import Transport
from streamcell.service.transport.lane_choice import choose_lane

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
            LaneError: the fast lane was asked for and does not work with this grpcio.
            OSError: a port cannot be bound, or a certificate cannot be used.
        """
        self.settings = settings
        self._registry = CollectorRegistry()
        self._http = MetricsServer(settings, self._registry, lambda: self.host.metrics.ready)
        # Before the engine threads exist, because loading a model holds the GIL for long.
        lane = choose_lane(settings.lane)
        self.host = ModelHost(settings, self._report_model, all_read=self._all_read)
        self.host.metrics.lane = lane.name
        self.host.memory_figures.here = lane.in_flight.figures
        self._transport = Transport(
            settings, self.host.services(lane), lane, self.host.metrics.error, spin_s=measured().spin_s
        )
        self.port = self._transport.port
        self.host.report_to(self._registry)
        self._registry.register(OneProcess())
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

    def _report_model(self, name: str, served: bool) -> None:
        self._transport.report_model(name, served)

    def _stalled(self, thread: str, stalled: bool) -> None:
        self.host.metrics.stall("serving" if thread == "serving" else "engine", thread, stalled)
        self._transport.stall(thread, stalled)

    def _all_read(self) -> bool:
        return self._transport.all_read()

    def start(self) -> None:
        """Answer calls and report ready."""
        self._http.start()
        self.metrics_port = self._http.port
        self._transport.start()
        self._transport.report((model.file.name for model in self.host.models), serving=True)
        self.host.start()
        self._watchdog.start()
        _log.info(
            "serving",
            host=self.settings.host,
            port=self.port,
            metrics_port=self.metrics_port,
            models=[f"{model.file.name}/{model.file.version}" for model in self.host.models],
            lane=self.host.metrics.lane,
            device=self.settings.device,
            compiled=COMPILED,
        )

    def kill(self) -> None:
        """Do nothing: the server has no other processes."""

    def reload(self) -> None:
        """Reload the certificates; new connections use them."""
        self._transport.reload()
        self._http.reload()

    def stop(self) -> None:
        """Shut down in order: not ready, no new sessions, a grace period, typed ends, then the engines.

        Returns once everything has stopped; at once if no session is live.
        """
        self._transport.drain()
        self.host.drain()
        self._watchdog.stop()
        self._transport.stop()
        self.host.stop()
        self._http.stop()
        _log.info("stopped")
