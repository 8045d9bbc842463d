"""The gRPC server itself: its port, its options, health and reflection beside the services that it is given."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping

import grpc
from grpc_health.v1 import health_pb2

from streamcell.proto import pb
from streamcell.proto.inference import oip
from streamcell.service.access.authenticator import Authenticator, asks_who_calls
from streamcell.service.access.checks import Check
from streamcell.service.access.entrances import for_operators, for_users
from streamcell.service.access.watched import Watched
from streamcell.service.addresses import check_free, joined
from streamcell.service.settings import Settings

from . import health
from . import reflection as reflected
from .answering import OnError
from .calls import Handler, ServerLane
from .in_flight import window_bytes
from .os_limits import connections_allowed, memory_bounds
from .tls import Certificates

# grpcio itself refuses messages this much over the limit; those below it get the typed error.
_HEADROOM_BYTES = 1024 * 1024
_STOP_S = 1.0
_HOUSEKEEPING_S = 0.5
_READ_S = 10.0

Services = Mapping[str, Mapping[str, Handler]]

# Calls that may wait to begin, or --max-sessions if that is more: after a restart all clients may come at once. A
# stream that is opened and reset at once costs the core 20 KB until it is processed, about as much as a session takes.
_WAITING_CALLS = 4_000


class Transport:
    """A bound port with health and reflection; `start` answers calls, `stop` ends them."""

    def __init__(
        self,
        settings: Settings,
        services: Services,
        lane: ServerLane,
        on_error: OnError,
        *,
        port: int | None = None,
        spin_s: float = 0.0,
        admin: bool = False,
    ) -> None:
        """Bind the port.

        Args:
            settings: where to listen, with what certificates, and the bounds on a message.
            services: method handlers by the service's full name and the method's.
            lane: makes the server.
            on_error: called for each error that the transport sends to a client.
            port: shared with other processes, in place of the settings'; None: the settings' and no sharing.
            spin_s: how long the serving thread may poll for messages before it blocks, unless the settings say it.
            admin: whether to listen at the settings' address for operators, in place of the other one.

        Raises:
            OSError: the port cannot be bound, or a file of certificates, tokens or keys cannot be used.
        """
        self._settings = settings
        self._shared = port is not None
        self._watched = Watched()
        self._on_error = on_error
        self._lane = lane
        self._names = tuple(services)
        self._health = health.Health(on_error, services)
        self._ask_who_calls(settings, admin)
        self._first_messages = lane.first_messages
        self._first_messages.after_s = settings.first_message_s
        self._first_messages.on_error = on_error
        message_bytes = max(settings.max_message_bytes, settings.max_infer_bytes) + _HEADROOM_BYTES
        lane.in_flight.bound(*memory_bounds(settings), message_bytes, on_error)
        waiting = max(_WAITING_CALLS, settings.max_sessions)
        self._stopping = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="calls-housekeeping", daemon=True)
        self._grpc = lane.server(
            (
                ("grpc.so_reuseport", int(port is not None)),
                ("grpc.max_concurrent_streams", settings.streams_a_connection),
                ("grpc.max_allowed_incoming_connections", connections_allowed(settings)),
                # Calls that begin at once are taken one by one; by itself the core refuses some from 1,000 on.
                ("grpc.server.max_pending_requests", waiting),
                ("grpc.server.max_pending_requests_hard_limit", waiting),
                # What a stream may send before it is read. The core's own choice grows to 4 MiB, which is no bound with
                # many streams; for a message that is awaited it makes room in any case.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", window_bytes(memory_bounds(settings)[1])),
                # Pings find peers that died silently, so their resources are freed.
                ("grpc.keepalive_time_ms", round(settings.keepalive_s * 1000)),
                ("grpc.http2.max_pings_without_data", 0),
                # Without it the core waits a minute for an answer, whatever the other option's value.
                ("grpc.http2.ping_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
                ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
                ("grpc.max_receive_message_length", message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ),
            # Processes that share the port would take CPU from each other by polling.
            spin_s=0.0
            if port is not None
            else spin_s
            if settings.spin_us is None
            else settings.spin_us * 1e-6,
        )
        services = {**services, health.SERVICE: self._health.handlers(lane)}
        if settings.reflection:
            files = (pb.DESCRIPTOR, oip.DESCRIPTOR, health_pb2.DESCRIPTOR)
            reflection = reflected.Reflection(files, self._first_messages, on_error)
            services[reflected.SERVICE] = reflection.handlers(lane)
        self._grpc.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(name, dict(methods))
                for name, methods in services.items()
            )
        )
        address = joined(settings.host, settings.port if port is None else port)
        self.port = self._bind(settings, settings.admin or "" if admin else address)
        lane.in_flight.listens(self.port, hold=settings.hold_replies)

    def _ask_who_calls(self, settings: Settings, admin: bool) -> None:
        """Make the lane's guard check callers, if the settings say so."""
        authenticator = Authenticator(settings, self._watched) if asks_who_calls(settings) else None
        check: Check | None = None if authenticator is None else authenticator.check
        if authenticator is not None:
            self._health.visible = authenticator.sees
            if settings.policy_file is not None:
                self._lane.take_turns(authenticator.turn, authenticator.most_bytes)
        if settings.admin is not None:
            check = for_operators(authenticator, settings.admin) if admin else for_users(authenticator)
        if check is not None:
            for guard in (self._lane.guard, self._lane.public_guard):
                guard.ask(check, self._on_error)

    def _bind(self, settings: Settings, address: str) -> int:
        try:
            if address.startswith("unix:"):
                # From here on others could connect, and be answered once the server starts.
                mask = os.umask(0o177)
                try:
                    port = self._grpc.add_insecure_port(address)
                finally:
                    os.umask(mask)
                os.chmod(address.removeprefix("unix:"), 0o600)
                return port
            if settings.tls_cert is not None and settings.tls_key is not None:
                certificates = Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
                self._watched.add(certificates.paths, certificates.reload)
                return self._grpc.add_secure_port(address, certificates.credentials)
            return self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            if not self._shared:
                host, _, number = address.rpartition(":")
                check_free(host.strip("[]"), int(number))
            raise OSError(f"cannot listen on {address}: {error}") from error

    def all_read(self) -> bool:
        """Wait until the handlers have all data that has reached the sockets; False if that takes too long."""
        done = threading.Event()
        return not self._lane.when_read(self._grpc, done.set) or done.wait(_READ_S)

    def when_read(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the handlers have all data that has reached the sockets."""
        if not self._lane.when_read(self._grpc, callback):
            callback()

    def reload(self) -> None:
        """Reload certificates, for new connections, and callers' credentials, for new calls."""
        self._watched.reload()

    def start(self) -> None:
        """Answer calls. Health says nothing yet: see `report`."""
        self._grpc.start()
        self._housekeeper.start()
        self._lane.in_flight.watch()
        self._watched.start()

    def _keep_house(self) -> None:
        while not self._stopping.wait(_HOUSEKEEPING_S):
            self._first_messages.tick(_HOUSEKEEPING_S, self.all_read)

    def report(self, models: Iterable[str], *, serving: bool) -> None:
        """Have health say whether the server, its services and `models` are serving."""
        self._health.report(("", *self._names, *models), serving=serving)

    def report_model(self, name: str, serving: bool) -> None:
        """Set the health status of `name`."""
        self._health.report((name,), serving=serving)

    def stall(self, what: str, stalled: bool) -> None:
        """Set health to NOT_SERVING while `what` makes no progress."""
        self._health.stall(what, stalled)

    def progress(self) -> dict[str, int | None]:
        """What the watchdog looks at: the progress of the thread that serves."""
        return {"serving": self._lane.beats(self._grpc)}

    def drain(self) -> None:
        """Set health to NOT_SERVING for good, whatever is reported later."""
        self._health.drain()

    def stop(self) -> None:
        """End the running calls and close the port; returns once that is done."""
        self._stopping.set()
        self._watched.stop()
        self._grpc.stop(_STOP_S).wait()
        self._lane.in_flight.stop()
