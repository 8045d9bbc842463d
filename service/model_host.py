"""Composes a process that runs models, without the transport."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry

from streamcell.proto import pb
from streamcell.service.access.pacing import LATER
from streamcell.service.access.policy import Policy
from streamcell.service.access.watched import Watched
from streamcell.service.batching.inline import Wakeup
from streamcell.service.durability.layout import SEQUENCE
from streamcell.service.engine.device import Device
from streamcell.service.engine.options import EngineOptions
from streamcell.service.lifecycle.changes import ModelChanges
from streamcell.service.lifecycle.control import ModelLifecycle
from streamcell.service.lifecycle.loaded_model import LoadedModel, load_all
from streamcell.service.lifecycle.table import Models
from streamcell.service.logs.audit import Audit
from streamcell.service.machine import measured
from streamcell.service.metrics.in_flight_metrics import MemoryFigures
from streamcell.service.metrics.log_metrics import AuditLines, LostLines
from streamcell.service.metrics.machine_metrics import MachineFigures
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.metrics.store_metrics import StoreMetrics
from streamcell.service.metrics.triton_metrics import TritonMetrics
from streamcell.service.protocols.common.audited import AuditedAnswering
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import Limits
from streamcell.service.protocols.common.scopes import Scopes
from streamcell.service.protocols.native.frame_stream import FrameStream
from streamcell.service.protocols.native.leaving import LeavingSession
from streamcell.service.protocols.native.management import Management
from streamcell.service.protocols.native.moving import Moving, elsewhere
from streamcell.service.protocols.native.predict import predict
from streamcell.service.protocols.native.recovered import recover
from streamcell.service.protocols.native.snapshots import Snapshots
from streamcell.service.protocols.native.stored_sessions import StoredSessions
from streamcell.service.protocols.native.stream import StreamSession
from streamcell.service.protocols.oip.infer import Infer
from streamcell.service.protocols.oip.repository import OipRepository
from streamcell.service.protocols.oip.scoped_infer import ScopedInfer
from streamcell.service.protocols.oip.service import SERVICE as OIP_SERVICE
from streamcell.service.protocols.oip.service import OipService
from streamcell.service.repository.selection import at_start
from streamcell.service.sessions.attention import Attention
from streamcell.service.sessions.kept_replies import KeptRoom
from streamcell.service.sessions.replica import Replica
from streamcell.service.sessions.table import SessionTable
from streamcell.service.store.cipher import Sealed
from streamcell.service.store.store import Store
from streamcell.service.transport.answering import Answering
from streamcell.service.transport.calls import Handler, Lane, OnRequest, OpenStream
from streamcell.service.transport.control_thread import ControlThread

from .errors import ServerDraining
from .settings import Settings

if TYPE_CHECKING:
    from streamcell.service.telemetry.export import SpanExport

_log = structlog.get_logger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["StreamCell"].full_name
_HOUSEKEEPING_S = 0.5
_DRAINING_S = 0.25  # between two looks for idle sequences without a stream
_NO_STORE = "the store has not answered yet"


def _movable(listener: object) -> LeavingSession | None:
    """The listener of a session, if that can go on with another replica."""
    return listener if isinstance(listener, LeavingSession) else None


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
            ModuleNotFoundError: a package of an extra that the settings need is not installed.
            OSError: the audit log cannot be written, or the settings of the store cannot be used.
        """
        self.settings = settings
        self._started = False
        # Called when a client asks the server to shut down, and before it refuses new sessions.
        self.on_drain: Callable[[], None] = lambda: None
        self.on_refuse: Callable[[], None] = lambda: None
        self._served = served
        self.watched = Watched()
        _log.info("machine measured", **measured().as_us())
        device = Device.parse(settings.device, tf32=settings.tf32)
        device.check()
        EngineOptions.of(settings, device, stateful=True).check()
        self.store = Store.of(settings)
        if self.store is not None and isinstance(cipher := self.store.cipher, Sealed):
            self.watched.add((cipher.path,), cipher.reload)
        self.audit = None if settings.audit_log is None else Audit(settings.audit_log)
        self.metrics = ServerMetrics()
        self.metrics.audit = self.audit
        self.lost_lines = LostLines()
        self.memory_figures = MemoryFigures()
        self.models: Models[LoadedModel] = Models(())
        if settings.model_control != "poll":
            found = at_start(settings)
            self.models = Models(load_all(found.files, settings, device, wakeup, found.errors, found.notes))
        self.sessions = SessionTable(idle_timeout_s=settings.idle_timeout_s, linger_s=settings.linger_s)
        self.sessions.audit = self.audit
        self.metrics.tenants = self.sessions.by_tenant
        kept = KeptRoom(settings.kept_reply_bytes, settings.max_kept_reply_bytes, settings.queue_messages)
        self.metrics.kept_replies = kept.figures
        self.context: CallContext[LoadedModel] = CallContext(
            self.models,
            self.sessions,
            self.metrics,
            Limits.of(settings),
            kept,
            Snapshots.of(settings),
            replica=Replica.of(settings),
        )
        self._stored: StoredSessions | None = None
        if self.store is not None:
            sealed = settings.store_key_file is not None
            self._stored = StoredSessions(self.store, self.sessions, sealed=sealed)
        self.context.store, self.context.stored = self.store, self._stored
        self._spans: SpanExport | None = None
        # With front ends, they trace the streams.
        if settings.otlp_endpoint is not None and not settings.frontends:
            from streamcell.service.telemetry.export import SpanExport

            self._spans = SpanExport(settings.otlp_endpoint, settings.trace_ratio)
        policy: Policy | None = None
        if settings.policy_file is not None:
            policy = Policy(settings.policy_file)
            LATER.start()
            self.watched.add((policy.path,), policy.reload)
        self.scopes = Scopes(self.context, policy)
        infer = self._infer = ScopedInfer(
            self.scopes,
            lambda context: Infer(context, settings.max_infer_bytes, settings.queue_messages),
            by_connection=settings.sequence_scope == "connection",
        )
        changes = ModelChanges(
            settings,
            device,
            self.models,
            self.sessions,
            self.metrics,
            self._report,
            self._begin,
            self.audit,
        )
        self._control = ModelLifecycle(settings, self.sessions, changes)
        if settings.model_control == "poll":  # one broken file does not hold up the others
            self._control.load_folder()
        self._oip = OipService(
            infer, device, self.metrics, "triton" if settings.triton_names else "streamcell"
        )
        self._moving: Moving | None = None
        if self.store is not None:
            self._moving = Moving(self.sessions, _movable, self._refuse)
            self.sessions.refusal = elsewhere
        self._thread = ControlThread()
        self._all_read = all_read
        self._stopping = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="housekeeping", daemon=True)

    def services(self, lane: Lane) -> dict[str, dict[str, Handler]]:
        """A handler a method, by the service's full name; `lane` drives their calls."""
        scopes = self.scopes
        drain = self._drain_asked if self.settings.remote_drain else None
        move = None if self._moving is None else self._moving.part
        management = Management(scopes, self.settings.grace_s, drain, move, self.store)
        answering = Answering(self.metrics.error, self._thread)
        if self.audit is not None:
            answering = AuditedAnswering(self.audit, self.metrics.error, self._thread)
        return {
            SERVICE: {
                "Stream": lane.stream(self._traced("Stream", scopes.stream("step", StreamSession))),
                "StreamFrames": lane.stream(self._traced("StreamFrames", scopes.stream("step", FrameStream))),
                "Predict": lane.unary(self._traced_unary("Predict", scopes.unary("predict", predict))),
                **management.handlers(lane, answering),
            },
            OIP_SERVICE: {
                **self._oip.handlers(lane, answering, self._traced, self._traced_unary),
                **OipRepository(self._control, scopes, self.settings.max_message_bytes).handlers(
                    lane, answering
                ),
            },
        }

    def _drain_asked(self) -> None:
        _log.info("asked to shut down")
        self.on_drain()

    def _traced(self, method: str, open_: OpenStream) -> OpenStream:
        return open_ if self._spans is None else self._spans.tracing.stream(method, open_)

    def _traced_unary(self, method: str, on_request: OnRequest) -> OnRequest:
        return on_request if self._spans is None else self._spans.tracing.unary(method, on_request)

    def _begin(self, model: LoadedModel) -> None:
        """Before a model is served: trace its runs, and bring back sessions of an earlier process."""
        if self._spans is not None:
            self._spans.tracing.watch(model.metrics)
        recover(model, self.scopes, {SEQUENCE: self._infer.recover})

    def report_to(self, registry: CollectorRegistry) -> None:
        """Have `registry` collect the figures."""
        registry.register(self.metrics)
        registry.register(self.lost_lines)
        registry.register(self.memory_figures)
        registry.register(MachineFigures(measured()))
        registry.register(AuditLines(self.audit))
        registry.register(StoreMetrics(self.store))
        if self.settings.triton_metrics:
            registry.register(TritonMetrics(self.metrics))

    def progress(self) -> dict[str, int | None]:
        """What the watchdog looks at: each engine's progress, by its thread's name."""
        return {
            f"engine-{model.file.name}-{model.file.version}": model.batcher.progress
            for model in self._control.running()
        }

    def start(self) -> None:
        """Start housekeeping, model control and the store.

        Raises:
            OSError: the store refuses this server; the text says why.
        """
        if self.store is not None:
            # Until it has answered once, no session could be opened.
            self.metrics.readiness.hold(_NO_STORE)
            self.store.start()
        self._started = True
        if self.audit is not None:
            self.audit.tell("started", version=version("streamcell"))
        self._housekeeper.start()
        self.metrics.readiness.serve(True)
        self._control.start()
        self.watched.start()

    def _report(self, name: str, served: bool) -> None:
        if self._started:
            self._served(name, served)

    def _keep_house(self) -> None:
        attention = Attention(_HOUSEKEEPING_S)
        while not self._stopping.wait(_HOUSEKEEPING_S):
            if attention.passes():
                self.sessions.expire_idle(attention, self._all_read)
            if self._stored is not None:
                self._stored.look()
                if self._stored.store.may_tell():
                    self.metrics.readiness.release(_NO_STORE)

    def drain(self) -> None:
        """Take no new sessions, give live ones the grace period, and end the rest with a typed error.

        Before that it reports that it is not ready, and gives proxies the time to notice. Sessions in a shared store
        move to other replicas. It returns at once if no session is live. Nobody waits for sessions without a stream.
        """
        self._refuse()
        _log.info("draining", sessions=len(self.sessions), grace_s=self.settings.grace_s)
        deadline_s = time.monotonic() + self.settings.grace_s
        if self._moving is not None:
            self._moving.all(deadline_s)
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
        self.watched.stop()
        self._control.halt()

    def _refuse(self) -> None:
        """Report that the server is not ready, and refuse new sessions once proxies have noticed."""
        if self.sessions.draining:
            return
        self.metrics.readiness.serve(False)
        self.on_refuse()
        if self.settings.settling_s:
            _log.info("settling", settle_s=self.settings.settling_s)
            self._stopping.wait(self.settings.settling_s)
        self.sessions.drain()

    def stop(self) -> None:
        """End the engines' threads. Call once the calls have ended."""
        self._thread.stop()
        self._control.stop()
        if self.store is not None:
            self.store.stop()
        if self._spans is not None:
            self._spans.stop()
        if self.audit is not None:
            self.audit.tell("stopped")
            self.audit.flush()

    def reload(self) -> None:
        """Write the audit log to the file that has its name now."""
        if self.audit is not None:
            self.audit.reopen()
