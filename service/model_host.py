"""Composes a process that runs models, without the transport."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry

from streamcell.proto import pb
from streamcell.service.batching.inline import Wakeup
from streamcell.service.engine.device import Device
from streamcell.service.engine.options import EngineOptions
from streamcell.service.lifecycle.changes import ModelChanges
from streamcell.service.lifecycle.control import ModelLifecycle
from streamcell.service.lifecycle.loaded_model import LoadedModel, load_all
from streamcell.service.lifecycle.table import Models
from streamcell.service.machine import measured
from streamcell.service.metrics.in_flight_metrics import MemoryFigures
from streamcell.service.metrics.log_metrics import LostLines
from streamcell.service.metrics.machine_metrics import MachineFigures
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.metrics.triton_metrics import TritonMetrics
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import Limits
from streamcell.service.protocols.native.frame_stream import FrameStream
from streamcell.service.protocols.native.management import Management
from streamcell.service.protocols.native.predict import predict
from streamcell.service.protocols.native.recovered import recover
from streamcell.service.protocols.native.stream import StreamSession
from streamcell.service.protocols.oip.infer import Infer
from streamcell.service.protocols.oip.repository import OipRepository
from streamcell.service.protocols.oip.service import SERVICE as OIP_SERVICE
from streamcell.service.protocols.oip.service import OipService
from streamcell.service.repository.selection import at_start
from streamcell.service.sessions.attention import Attention
from streamcell.service.sessions.kept_replies import KeptRoom
from streamcell.service.sessions.table import SessionTable
from streamcell.service.transport.answering import Answering
from streamcell.service.transport.calls import Call, Handler, Lane
from streamcell.service.transport.control_thread import ControlThread

from .errors import ServerDraining
from .settings import Settings

_log = structlog.get_logger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["StreamCell"].full_name
_HOUSEKEEPING_S = 0.5
_DRAINING_S = 0.25  # between two looks for idle sequences without a stream


class ModelHost:
    """The running models, all that calls need of them, and a handler for each method. It opens no port."""

    def __init__(
        self,
        settings: Settings,
        served: Callable[[str, bool], None],
        wakeup: Callable[[], Wakeup | None] = lambda: None,
        all_read: Callable[[], bool] = lambda: True,
    ) -> None:
        """Load the models and start their engines.

        Args:
            settings: the server's.
            served: called when a model becomes available or unavailable, once the host has been started.
            wakeup: makes what a model's engine thread sleeps on, if front ends share the models.
            all_read: waits until all data in the sockets is in the sessions' queues; False if that takes too long.

        Raises:
            ModelLoadError: there is no model, or one cannot be served; the text says which and why.
            DeviceError: the device is not available.
        """
        self.settings = settings
        self._started = False
        self._served = served
        _log.info("machine measured", **measured().as_us())
        device = Device.parse(settings.device, tf32=settings.tf32)
        device.check()
        EngineOptions.of(settings, device, stateful=True).check()
        self.metrics = ServerMetrics()
        self.lost_lines = LostLines()
        self.memory_figures = MemoryFigures()
        self.models: Models[LoadedModel] = Models(())
        if settings.model_control != "poll":
            found = at_start(settings)
            self.models = Models(load_all(found.files, settings, device, wakeup, found.errors, found.notes))
        self.sessions = SessionTable(idle_timeout_s=settings.idle_timeout_s, linger_s=settings.linger_s)
        kept = KeptRoom(settings.kept_reply_bytes, settings.max_kept_reply_bytes, settings.queue_messages)
        self.metrics.kept_replies = kept.figures
        self.context: CallContext[LoadedModel] = CallContext(
            self.models, self.sessions, self.metrics, Limits.of(settings), kept
        )
        changes = ModelChanges(
            settings,
            device,
            self.models,
            self.sessions,
            self.metrics,
            self._report,
            lambda model: recover(model, self.context),
        )
        self._control = ModelLifecycle(settings, self.sessions, changes)
        if settings.model_control == "poll":  # one broken file does not hold up the others
            self._control.load_folder()
        infer = Infer(self.context, settings.max_infer_bytes, settings.queue_messages)
        self._oip = OipService(
            infer, device, self.metrics, "triton" if settings.triton_names else "streamcell"
        )
        self._thread = ControlThread()
        self._all_read = all_read
        self._stopping = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="housekeeping", daemon=True)

    def services(self, lane: Lane) -> dict[str, dict[str, Handler]]:
        """A handler a method, by the service's full name; `lane` drives their calls."""
        context = self.context
        answering = Answering(self.metrics.error, self._thread)

        def open_(call: Call) -> StreamSession:
            return StreamSession(call, context)

        return {
            SERVICE: {
                "Stream": lane.stream(open_),
                "StreamFrames": lane.stream(lambda call: FrameStream(call, context)),
                "Predict": lane.unary(lambda call, data: predict(call, data, context)),
                **Management(context).handlers(lane, answering),
            },
            OIP_SERVICE: {
                **self._oip.handlers(lane, answering),
                **OipRepository(self._control, self.settings.max_message_bytes).handlers(lane, answering),
            },
        }

    def report_to(self, registry: CollectorRegistry) -> None:
        """Have `registry` collect the figures."""
        registry.register(self.metrics)
        registry.register(self.lost_lines)
        registry.register(self.memory_figures)
        registry.register(MachineFigures(measured()))
        if self.settings.triton_metrics:
            registry.register(TritonMetrics(self.metrics))

    def progress(self) -> dict[str, int | None]:
        """What the watchdog looks at: each engine's progress, by its thread's name."""
        return {
            f"engine-{model.file.name}-{model.file.version}": model.batcher.progress
            for model in self._control.running()
        }

    def start(self) -> None:
        """Start housekeeping and model control."""
        self._started = True
        self._housekeeper.start()
        self.metrics.readiness.serve(True)
        self._control.start()

    def _report(self, name: str, served: bool) -> None:
        if self._started:
            self._served(name, served)

    def _keep_house(self) -> None:
        attention = Attention(_HOUSEKEEPING_S)
        while not self._stopping.wait(_HOUSEKEEPING_S):
            if attention.passes():
                self.sessions.expire_idle(attention, self._all_read)

    def drain(self) -> None:
        """Take no new sessions, give live ones the grace period, and end the rest with a typed error.

        Returns at once if no session is live. Nobody waits for sessions without a stream.
        """
        self.metrics.readiness.serve(False)
        self.sessions.drain()
        _log.info("draining", sessions=len(self.sessions), grace_s=self.settings.grace_s)
        deadline_s = time.monotonic() + self.settings.grace_s
        attention = Attention(_DRAINING_S)
        look_s = time.monotonic() + _DRAINING_S
        while self.sessions.attached and time.monotonic() < deadline_s:
            time.sleep(0.02)
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + _DRAINING_S
                if attention.passes():
                    self._oip.end_abandoned(attention, self._all_read)
        for model in self._control.running():
            if model.journal is not None:
                model.journal.kept = True
        self.sessions.fail_all(
            lambda: ServerDraining("the server has shut down; the session's state is gone")
        )
        self._oip.end_streams(ServerDraining("the server has shut down"))
        self._stopping.set()
        self._control.halt()

    def stop(self) -> None:
        """End the engines' threads. Call once the calls have ended."""
        self._thread.stop()
        self._control.stop()
