"""grpcio's completion queue with busy polling: polls briefly before blocking when recent waits were short.

A sleeping thread wakes up late, on a core that has halted: that is most of the cost of a lone client's step. So if
recent events arrived quickly, the thread polls for the next one before it sleeps, like Linux's haltpoll governor for
idle guests (Documentation/virt/guest-halt-polling.rst). This costs nothing if waits are long, and less CPU than
wake-ups if they are short.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, Protocol

import grpc
import structlog
from grpc._cython import cygrpc

_log = structlog.get_logger(__name__)

_NOTHING = cygrpc.CompletionType.queue_timeout
_LEAST, _MOST = 2, 256  # short sleeps in a row before it polls again
_FEW = 2  # arrivals
_EVENTS = 16  # maximum events before the callback of `once_idle`
_ENOUGH = 65_536  # maximum events after which the sockets count as read, for a callback of `when_read`
_MOST_PROBES = 16  # of these at a time
# A callback of `between_looks` comes after so many looks that found nothing, each at one socket, or so many events.
_LOOKS, _BETWEEN = 4, 256

AGAIN: tuple[None, tuple[()]] = (None, ())  # what grpcio's serving loop expects of a tag that ends no call


class Arrivals:
    """Counts arrivals at all servers in this process. An instance: setting class attributes clears Python's caches."""

    __slots__ = ("calls", "messages", "seen")

    def __init__(self) -> None:
        self.calls = self.messages = 0  # unary calls; messages of streams
        self.seen = 0  # their sum at the last call of `few`

    def few(self) -> bool:
        """True if few arrived since the last call."""
        came = self.calls + self.messages
        few, self.seen = came - self.seen <= _FEW, came
        return few


ARRIVALS = Arrivals()
_patching = threading.Lock()


class _Probe:
    """A request to be called when the sockets' present content has been read and handled."""

    __slots__ = ("before", "callback", "events", "looks")

    def __init__(self, callback: Callable[[], None], sockets: int) -> None:
        self.callback = callback
        self.looks = sockets  # that find nothing: each reads one socket at most
        self.events = _ENOUGH
        self.before: int | None = None  # once the sockets have been read: as `Turns.came` was then


class Turns(Protocol):
    """What has been read and waits until the sockets have been looked at; see `between_looks`.

    Attributes:
        came: the number of messages that have come to wait so far.
    """

    came: int

    def give(self) -> bool:
        """Handle some of it; True if more waits."""

    def waits(self, before: int) -> bool:
        """True if any of the first `before` messages still waits."""


class _Serving(threading.local):
    queue: ServingQueue | None = None  # the queue that this thread serves


_serving = _Serving()


class ServingQueue(cygrpc.CompletionQueue):  # type: ignore[misc]  # grpcio has no types for it
    """A completion queue that polls and calls callbacks when asked to; otherwise `poll` is grpcio's own.

    After `expect` the next wait begins with polling for up to `spin_s`, while that pays. If polling finds nothing, it
    stops until a number of sleeps in a row were short; that number doubles until polling finds something again. A sleep
    is short up to twice `spin_s`, because it includes the wake-up.
    """

    __slots__ = (
        "_asked", "_begun", "_between", "_events", "_expects", "_found_nothing", "_looks", "_passed", "_plain",
        "_probes", "_probing", "_short", "_wanted", "beats", "callback", "poll", "spin_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.spin_s = 0.0
        self._plain = super().poll
        # The next event, or one of the type `queue_timeout` at the deadline, in seconds since the epoch.
        self.poll: Callable[[float | None], Any] = self._first
        self._expects = self._looks = False
        self._short, self._wanted = 0, _LEAST
        self.callback: Callable[[], None] | None = None
        self._passed = 0
        self._begun = self._asked = False
        self.beats = 0  # waits of the thread that began after `ask`
        self._probes: tuple[_Probe, ...] = ()
        self._probing = threading.Lock()  # held to replace them
        self._between: Turns | None = None
        self._events = self._found_nothing = 0  # events, and looks without one, since its last call

    def _first(self, deadline: float | None) -> Any:
        _serving.queue = self
        self._begun = True
        self._be_plain()
        return self.poll(deadline)

    def _be_plain(self) -> None:
        self.poll = self._plain
        if self._probes:  # another thread may have asked just now
            self.poll = self._attentive

    def _attentive(self, deadline: float | None) -> Any:
        """`poll`, until it has waited."""
        if self._asked:
            self._asked = False
            self.beats += 1
        event = self._plain(0)
        while self.callback is not None or self._between is not None:
            came = event.completion_type != _NOTHING
            if not came:
                self._looked()
            if self.callback is None:
                self._call_between(came)
            elif came and self._passed < _EVENTS:
                self._passed += 1
            else:
                self.call_now()
            if came:
                break
            event = self._plain(0)
        if self._probes:
            event = self._read_for(self._probes, event)
        if event.completion_type != _NOTHING:
            return event
        self._be_plain()
        if not self._expects:
            return self._plain(deadline)
        self._expects = False
        return self._look(deadline) if self._looks else self._sleep(deadline)

    def _looked(self) -> None:
        """A look has found nothing."""
        for probe in self._probes:
            probe.looks -= 1

    def _read_for(self, probes: tuple[_Probe, ...], event: Any) -> Any:
        """Poll until an event arrives or every socket has been read; call those for whom nothing waits any more."""
        while event.completion_type == _NOTHING and any(probe.looks > 0 for probe in probes):
            self._looked()
            event = self._plain(0)
        turns = self._between
        for probe in probes:
            probe.events -= 1
            # While messages wait for their turns, this sees only looks that found something.
            read = event.completion_type == _NOTHING or (turns is not None and probe.looks <= 0)
            if probe.before is None and (read or probe.events < 0):
                probe.before = 0 if turns is None else turns.came
            if probe.before is not None and (turns is None or not turns.waits(probe.before)):
                with self._probing:
                    self._probes = tuple(each for each in self._probes if each is not probe)
                _try(probe.callback)
        return event

    def _call_between(self, came: bool) -> None:
        """Call what waits for looks at the sockets, if there were enough; `came`: the last one found an event."""
        self._events += came
        self._found_nothing += not came
        if self._found_nothing < _LOOKS and self._events < _BETWEEN:
            return
        self._events = self._found_nothing = 0
        turns, self._between = self._between, None
        if turns is not None and _try(turns.give) and self._between is None:
            self._between = turns

    def _look(self, deadline: float | None) -> Any:
        end_s = time.perf_counter() + self.spin_s
        while time.perf_counter() < end_s:
            event = self._plain(0)
            if event.completion_type != _NOTHING:
                self._wanted = _LEAST
                return event
        self._looks, self._short = False, 0
        self._wanted = min(2 * self._wanted, _MOST)
        return self._plain(deadline)

    def _sleep(self, deadline: float | None) -> Any:
        began_s = time.perf_counter()
        event = self._plain(deadline)
        self._short = self._short + 1 if time.perf_counter() - began_s < 2 * self.spin_s else 0
        self._looks = self._short >= self._wanted
        return event

    def expect(self) -> None:
        """Expect the next event soon: poll for it."""
        if self.spin_s > 0:
            self._expects = True
            self.poll = self._attentive

    def once_idle(self, callback: Callable[[], None]) -> bool:
        """See the function `once_idle`."""
        if self.callback is not None:
            return False
        self.callback, self._passed = callback, 0
        self.poll = self._attentive
        return True

    def between_looks(self, turns: Turns) -> None:
        """See the function `between_looks`."""
        self._between = turns
        self.poll = self._attentive

    def ask(self) -> int:
        """Count the next wait in `beats`; returns `beats`. Any thread may call it; other waits cost nothing more."""
        if self._begun:
            # If the serving thread overwrites `poll` at this moment, the next `ask` sets it again.
            self._asked = True
            self.poll = self._attentive
        return self.beats

    def when_read(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the serving thread once it has read and handled what the sockets hold now.

        What waits for its turn by then has been handled, too. A flood that does not end is not waited for: after
        65,536 events the sockets count as read. Any thread may call it. If too many callbacks wait, the oldest is
        dropped. An idle server's thread wakes up within a second.
        """
        probe = _Probe(callback, len(os.listdir("/proc/self/fd")) + _EVENTS)
        with self._probing:
            self._probes = (*self._probes, probe)[-_MOST_PROBES:]
        if self.poll != self._first:
            self.poll = self._attentive

    def call_now(self) -> None:
        """Call the waiting callback of `once_idle`."""
        callback, self.callback = self.callback, None
        if callback is not None:
            _try(callback)


def _try(callback: Callable[[], object]) -> object:
    try:
        return callback()
    except Exception as error:
        _log.error("deferred callback failed", exc_info=error)
        return True  # it is not done


def call_soon(call: Any, callback: Callable[[], None]) -> bool:
    """Put `callback` at the end of the completion queue: a batch of no operations completes there at once."""

    def tag(event: Any) -> Any:
        _try(callback)
        return AGAIN

    started: bool = call.start_server_batch((), tag) == cygrpc.CallError.ok
    return started


def once_idle(callback: Callable[[], None]) -> bool:
    """Call `callback` once the sockets have been read without a new event, or after a few events.

    For tags on a thread that serves a `ServingQueue`. Returns False, without a call, on other threads and if another
    callback waits.
    """
    return _serving.queue is not None and _serving.queue.once_idle(callback)


def between_looks(turns: Turns) -> bool:
    """Call `turns.give` whenever the sockets have been read without a new event, until it returns False.

    A look is at one socket, so a call comes after a few of them; and after many events, if they do not end. For tags
    on a thread that serves a `ServingQueue`. Returns False, without a call, on other threads.
    """
    if _serving.queue is None:
        return False
    _serving.queue.between_looks(turns)
    return True


def expect() -> None:
    """Call before a reply is sent: if few clients are active, the next message is expected soon, so poll for it."""
    if ARRIVALS.few() and _serving.queue is not None:
        _serving.queue.expect()


def no_longer_idle() -> None:
    """Call this thread's waiting callback now. For the end of a call: after the last one nobody serves the queue."""
    queue = _serving.queue
    if queue is not None and queue.callback is not None:
        queue.call_now()


def when_read(server: grpc.Server, callback: Callable[[], None]) -> bool:
    """`ServingQueue.when_read` of `server`'s queue. Returns False, without a call, if the queue is grpcio's own."""
    queue = getattr(getattr(server, "_state", None), "completion_queue", None)
    if not isinstance(queue, ServingQueue):
        return False
    queue.when_read(callback)
    return True


def server_on_queue(
    workers: futures.ThreadPoolExecutor, options: Any, *, spin_s: float, kind: type | None = None
) -> grpc.Server:
    """`grpc.server` with a `ServingQueue`, which polls for `spin_s` if there is more than one core.

    `kind`: a class to use in place of the core's server.

    If this grpcio builds its servers differently, the server has grpcio's own queue.
    """
    with _patching:
        originals = cygrpc.CompletionQueue, cygrpc.Server
        cygrpc.CompletionQueue, cygrpc.Server = ServingQueue, kind or cygrpc.Server
        try:
            server = grpc.server(workers, options=options)
        finally:
            cygrpc.CompletionQueue, cygrpc.Server = originals
    queue = _queue_of(server)
    if queue is not None and len(os.sched_getaffinity(0)) > 1:
        queue.spin_s = spin_s
    return server


def _queue_of(server: grpc.Server) -> ServingQueue | None:
    queue = getattr(getattr(server, "_state", None), "completion_queue", None)
    return queue if isinstance(queue, ServingQueue) else None


def beats(server: grpc.Server) -> int | None:
    """A number that changes between two calls while `server`'s thread fetches events; None if unknown.

    An idle thread fetches once a second.
    """
    queue = _queue_of(server)
    return None if queue is None else queue.ask()


def peer_of(call: Any) -> dict[str, list[bytes]]:
    """What TLS knows of the peer of `call`, the core's."""
    return {key.decode(): value for key, value in cygrpc.auth_context(call).items()}
