"""`grpc.health.v1.Health` on the lane: what is served, now and whenever that changes.

No status is sent under a lock. A watch keeps no queue: it knows what it has sent last, and sends what holds now once
its client has read enough for that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import grpc
from grpc_health.v1 import health_pb2

from streamcell.service.access.identity import Identity
from streamcell.service.errors import ServiceError, UnknownService, as_status

from .answering import Answering, OnError, parse
from .calls import Call, Handler, Lane

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_Answer = health_pb2.HealthCheckResponse
_MOST_NAME = 1024  # characters; no served name is longer


class Health:
    """The health status by name; "" is the server as a whole. Thread-safe."""

    def __init__(self, on_error: OnError = lambda error: None, services: Iterable[str] = ()) -> None:
        """`on_error` is called for each error sent to a client; `services` are the names of the server's services."""
        self._on_error = on_error
        self._serving = {"": False}
        self._draining = False
        self._stalled: frozenset[str] = frozenset()
        # Whether a caller may know of a model. Of the server and its services everybody may.
        self.visible: Callable[[Identity, str], bool] = lambda caller, model: True
        self._public: frozenset[str] = frozenset(("", *services))
        self._watches: dict[str, set[Watch]] = {}
        self._lock = threading.Lock()

    def handlers(self, lane: Lane) -> dict[str, Handler]:
        """The method handlers by name."""
        answering = Answering(self._on_error)
        return {
            "Check": lane.unary(answering.now(health_pb2.HealthCheckRequest, self.check), public=True),
            "Watch": lane.stream(lambda call: Watch(call, self, self._on_error), public=True),
        }

    def check(
        self, request: health_pb2.HealthCheckRequest, caller: Identity
    ) -> health_pb2.HealthCheckResponse:
        """Whether one name is served; raises UnknownService."""
        status = self.status(self.known_as(caller, request.service))
        if status == _Answer.SERVICE_UNKNOWN:
            raise UnknownService(f"nothing named {request.service[:120]!r} is served here")
        return _Answer(status=status)

    def known_as(self, caller: Identity, name: str) -> str:
        """`name`; if `caller` may not know of it, a name that is not served."""
        return name if name in self._public or self.visible(caller, name) else name[:_MOST_NAME] + "…"

    def status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        """The present status of `name`."""
        serving = self._serving.get(name)
        if serving is None:
            return _Answer.SERVICE_UNKNOWN
        return (
            _Answer.SERVING if serving and not self._draining and not self._stalled else _Answer.NOT_SERVING
        )

    def report(self, names: Iterable[str], *, serving: bool) -> None:
        """Set the status of `names`."""
        with self._lock:
            self._serving.update(dict.fromkeys(names, serving))
        self._notify()

    def drain(self) -> None:
        """Set every status to NOT_SERVING for good, whatever is reported later."""
        self._draining = True
        self._notify()

    def stall(self, what: str, stalled: bool) -> None:
        """Set every status to NOT_SERVING while `what` makes no progress."""
        with self._lock:
            self._stalled = self._stalled | {what} if stalled else self._stalled - {what}
        self._notify()

    def _notify(self) -> None:
        with self._lock:
            watches = [watch for named in self._watches.values() for watch in named]
        for watch in watches:
            watch.notify()

    def add(self, watch: Watch, name: str) -> None:
        """Notify `watch` of changes from now on."""
        with self._lock:
            self._watches.setdefault(name, set()).add(watch)

    def remove(self, watch: Watch, name: str) -> None:
        """Remove `watch`, which has ended."""
        with self._lock:
            named = self._watches.get(name, set())
            named.discard(watch)
            if not named:
                self._watches.pop(name, None)

    @property
    def watches(self) -> int:
        """How many watches are open."""
        with self._lock:
            return sum(map(len, self._watches.values()))


class Watch:
    """One `Watch` call (a `calls.StreamHandler`): one request, then the status, and each one that follows it."""

    def __init__(self, call: Call, health: Health, on_error: OnError) -> None:
        self._call = call
        self._health = health
        self._on_error = on_error
        self._name: str | None = None
        self._sent: int | None = None
        self._lock = threading.Lock()
        self._notifying = self._again = self._over = False

    def on_message(self, data: bytes) -> bool:
        """Take the request; later messages are not read."""
        if self._name is not None:
            return False
        try:
            name = parse(health_pb2.HealthCheckRequest, data).service
        except ServiceError as error:
            self._on_error(error)
            self._call.end(*as_status(error))
            return False
        # An impossible name is not kept: its status never changes.
        name = self._health.known_as(self._call.caller, name)
        self._name = name if len(name) <= _MOST_NAME else name[:_MOST_NAME] + "…"
        self._health.add(self, self._name)
        self.notify()
        return True

    def on_half_close(self) -> None:
        """The client sends no more messages: the call continues until it is cancelled."""
        if self._name is None:
            self._call.end(grpc.StatusCode.UNIMPLEMENTED, "Watch takes one message; none came")

    def on_end(self, cancelled: bool) -> None:
        """The call is over."""
        self._over = True
        if self._name is not None:
            self._health.remove(self, self._name)

    def notify(self) -> None:
        """Send the present status, unless it was sent last or the client does not read.

        One thread sends at a time; another one makes it look again, so the last reply is the present status.
        """
        with self._lock:
            if self._notifying:
                self._again = True
                return
            self._notifying = True
        while True:
            self._send()
            with self._lock:
                if not self._again:
                    self._notifying = False
                    return
                self._again = False

    def _send(self) -> None:
        status = self._health.status(self._name or "")
        if status != self._sent and not self._over and self._call.has_room(self.notify):
            first, self._sent = self._sent is None, status
            self._call.reply(_Answer(status=status).SerializeToString(), last=first)
