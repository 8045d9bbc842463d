"""The server: models, calls, health, reflection and metrics put together, and the order of a shutdown."""

from __future__ import annotations

import threading
import time
from concurrent import futures
from wsgiref.simple_server import WSGIServer

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from streamcell.proto import pb
from streamcell.proto.inference import oip

from .calls import Call
from .control import Control
from .device import Device
from .errors import ServerDraining
from .frames import FrameStream
from .lane_choice import choose_lane
from .loaded import Models, load
from .metrics import ServerMetrics
from .model_choice import at_start
from .model_control import ModelControl
from .oip_infer import Infer
from .oip_repository import OipRepository
from .oip_service import SERVICE as OIP_SERVICE
from .oip_service import OipService
from .predict import predict
from .reflected import serve_reflection
from .requests import Limits
from .sessions import SessionTable
from .settings import Settings
from .stream import Service, StreamSession
from .triton_metrics import TritonMetrics

_log = structlog.get_logger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["StreamCell"].full_name
_HOUSEKEEPING_S = 0.5
# grpcio itself refuses messages this much over the limit; those below it get the typed error.
_HEADROOM_BYTES = 1024 * 1024


class Server:
    """Loads the models and serves them from `start` until `stop`.

    Building one loads everything and binds the ports, so that what is wrong is known before it is ready.
    """

    def __init__(self, settings: Settings) -> None:
        """Load the models and bind the ports.

        Raises:
            ModelLoadError: there is no model, or one cannot be served; the text says which and why.
            DeviceError: the device cannot be had.
            LaneError: the fast lane was asked for and does not work with this grpcio.
            OSError: a port cannot be bound.
        """
        self.settings = settings
        device = Device.parse(settings.device, tf32=settings.tf32)
        device.check()
        self.metrics = ServerMetrics()
        # Before the engines' threads exist, for loading a model holds the GIL for long.
        lane = choose_lane(settings.lane)
        self.metrics.lane = lane.name
        self.models = Models([load(file, settings, device) for file in at_start(settings)])
        self.sessions = SessionTable(idle_timeout_s=settings.idle_timeout_s)
        service = Service(
            self.models,
            self.sessions,
            self.metrics,
            Limits(
                settings.max_message_bytes,
                settings.max_steps_per_message,
                settings.non_finite == "allow",
                settings.max_generate_steps,
                settings.max_beam_width,
            ),
        )
        self._health = health.HealthServicer()
        self.control = ModelControl(
            settings, device, self.models, self.sessions, self.metrics, self._set_model_health
        )

        def open_(call: Call) -> StreamSession:
            return StreamSession(call, service)

        handlers = {
            "Stream": lane.stream(open_),
            "StreamFrames": lane.stream(lambda call: FrameStream(call, service)),
            "Predict": lane.unary(lambda call, data: predict(call, data, service)),
            **Control(service).handlers(),
        }
        self._grpc = grpc.server(
            futures.ThreadPoolExecutor(lane.workers, thread_name_prefix="calls"),
            options=(
                ("grpc.so_reuseport", 0),
                (
                    "grpc.max_receive_message_length",
                    max(settings.max_message_bytes, settings.max_infer_bytes) + _HEADROOM_BYTES,
                ),
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ),
        )
        infer = Infer(service, settings.max_infer_bytes, settings.queue_messages)
        self._oip = OipService(infer, device)
        oip_handlers = {
            **self._oip.handlers(lane),
            **OipRepository(self.control, self.metrics).handlers(lane),
        }
        self._grpc.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, handlers),
                grpc.method_handlers_generic_handler(OIP_SERVICE, oip_handlers),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        serve_reflection(self._grpc, (pb.DESCRIPTOR, oip.DESCRIPTOR, health_pb2.DESCRIPTOR))
        self.port = self._bind()
        self._registry = CollectorRegistry()
        self._registry.register(self.metrics)
        if settings.triton_metrics:
            self._registry.register(TritonMetrics(self.metrics))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._http: WSGIServer | None = None
        self.metrics_port = 0
        self._stopping = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="housekeeping", daemon=True)

    def _bind(self) -> int:
        settings = self.settings
        address = f"{settings.host}:{settings.port}"
        try:
            if settings.tls_cert is not None and settings.tls_key is not None:
                pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
                return self._grpc.add_secure_port(address, grpc.ssl_server_credentials([pair]))
            return self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error

    def start(self) -> None:
        """Answer calls and report ready."""
        host = self.settings.metrics_host or self.settings.host
        self._http, _ = start_http_server(self.settings.metrics_port, host, self._registry)
        self.metrics_port = self._http.server_port
        self._grpc.start()
        self._housekeeper.start()
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self.metrics.ready = True
        self.control.start()
        _log.info(
            "serving",
            host=self.settings.host,
            port=self.port,
            metrics_port=self.metrics_port,
            models=[f"{model.file.name}/{model.file.version}" for model in self.models],
            lane=self.metrics.lane,
            device=self.settings.device,
        )

    def _set_health(self, status: int) -> None:
        for name in ("", SERVICE, OIP_SERVICE, *{model.file.name for model in self.models}):
            self._health.set(name, status)

    def _set_model_health(self, name: str, served: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self._health.set(name, status.SERVING if served else status.NOT_SERVING)

    def _keep_house(self) -> None:
        while not self._stopping.wait(_HOUSEKEEPING_S):
            self.sessions.expire_idle()

    def stop(self) -> None:
        """Shut down in order: not ready, no new sessions, a grace period, typed ends, then the engines.

        Returns once everything has stopped; at once where no session is live.
        """
        self.metrics.ready = False
        self._health.enter_graceful_shutdown()
        self.sessions.drain()
        _log.info("draining", sessions=len(self.sessions), grace_s=self.settings.grace_s)
        deadline_s = time.monotonic() + self.settings.grace_s
        while len(self.sessions) and time.monotonic() < deadline_s:
            time.sleep(0.02)
            self._oip.end_abandoned()
        self.sessions.fail_all(
            lambda: ServerDraining("the server has shut down; the session's state is gone")
        )
        self._oip.end_streams(ServerDraining("the server has shut down"))
        self._stopping.set()
        self.control.halt()
        self._grpc.stop(1.0).wait()
        self.control.stop()
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
        _log.info("stopped")
