"""grpcio's completion queue with busy polling: polls briefly before blocking when recent waits were short.

A thread that sleeps is woken late, and on a core that has halted meanwhile: what a lone client's step costs is mostly
that. So where events have lately come within moments, the thread looks for the next one without sleeping, as Linux's
haltpoll governor does for idle guests (Documentation/virt/guest-halt-polling.rst): it costs nothing where waits are
long or nothing is awaited, and less CPU than the wake-ups where they are short.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import structlog
from grpc._cython import cygrpc

_log = structlog.get_logger(__name__)

_NOTHING = cygrpc.CompletionType.queue_timeout
_LEAST, _MOST = 2, 256  # sleeps in a row before it looks again
_FEW = 2  # arrivals
_EVENTS = 16  # that `once_idle` lets pass at most
_ENOUGH = 65_536  # events after which `when_read` takes the sockets as read, however many more come

AGAIN: tuple[None, tuple[()]] = (None, ())  # what grpcio's serving loop expects of a tag that ends no call


class Arrivals:
    """What has come in, of all servers in this process. No class's attributes: to set these empties Python's caches."""

    __slots__ = ("calls", "messages", "seen")

    def __init__(self) -> None:
        self.calls = self.messages = 0  # unary calls; messages of streams
        self.seen = 0  # both together, when something was last put off

    def few(self) -> bool:
        """True if few have come since the last call."""
        came = self.calls + self.messages
        few, self.seen = came - self.seen <= _FEW, came
        return few


ARRIVALS = Arrivals()
_patching = threading.Lock()


class _Probe:
    """A request to be called when the sockets' present content has been read."""

    __slots__ = ("callback", "events", "looks")

    def __init__(self, callback: Callable[[], None], sockets: int) -> None:
        self.callback = callback
        self.looks = sockets  # that find nothing: each reads one socket at most
        self.events = _ENOUGH


class _Serving(threading.local):
    queue: ServingQueue | None = None  # that the thread serves


_serving = _Serving()


class ServingQueue(cygrpc.CompletionQueue):  # type: ignore[misc]  # grpcio has no types for it
    """A completion queue that has more to do than wait, when it is told so; else `poll` is grpcio's own.

    `expect` has the next wait begin with looking for up to `spin_s`, while that pays: a look that has found nothing is
    the last until so many sleeps in a row were short; twice as many as the time before, unless one has found
    something meanwhile. A sleep counts as short up to twice the time, for it includes the waking up.
    """

    __slots__ = (
        "_asked", "_begun", "_callback", "_expects", "_looks", "_passed", "_plain", "_probe", "_short", "_wanted",
        "beats", "poll", "spin_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.spin_s = 0.0
        self._plain = super().poll
        # The next event, or one of the type `queue_timeout` at the deadline, in seconds since the epoch.
        self.poll: Callable[[float | None], Any] = self._first
        self._expects = self._looks = False
        self._short, self._wanted = 0, _LEAST
        self._callback: Callable[[], None] | None = None
        self._passed = 0
        self._begun = self._asked = False
        self.beats = 0  # times that the thread has come by after it was asked to
        self._probe: _Probe | None = None

    def _first(self, deadline: float | None) -> Any:
        _serving.queue = self
        self._begun = True
        self._be_plain()
        return self.poll(deadline)

    def _be_plain(self) -> None:
        self.poll = self._plain
        if self._probe is not None:  # another thread may have asked just now
            self.poll = self._attentive

    def _attentive(self, deadline: float | None) -> Any:
        """`poll`, until it has waited."""
        if self._asked:
            self._asked = False
            self.beats += 1
        event = self._plain(0)
        while self._callback is not None:
            came = event.completion_type != _NOTHING
            if came and self._passed < _EVENTS:
                self._passed += 1
                return event
            self.call_now()
            if came:
                return event
            event = self._plain(0)
        if self._probe is not None:
            event = self._read_for(self._probe, event)
        if event.completion_type != _NOTHING:
            return event
        self._be_plain()
        if not self._expects:
            return self._plain(deadline)
        self._expects = False
        return self._look(deadline) if self._looks else self._sleep(deadline)

    def _read_for(self, probe: _Probe, event: Any) -> Any:
        """Look until something comes, or until every socket has been read."""
        while probe.looks > 0 and event.completion_type == _NOTHING:
            probe.looks -= 1
            event = self._plain(0)
        probe.events -= 1
        if event.completion_type == _NOTHING or probe.events < 0:
            self._probe = None
            _try(probe.callback)
        return event

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
        """See the function."""
        if self._callback is not None:
            return False
        self._callback, self._passed = callback, 0
        self.poll = self._attentive
        return True

    def ask(self) -> int:
        """Have the next wait counted in `beats`, which is returned. For any thread; costs nothing otherwise."""
        if self._begun:
            # Should the serving thread set `poll` just now, the next one who asks will have it counted.
            self._asked = True
            self.poll = self._attentive
        return self.beats

    def when_read(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the serving thread once it has read what the sockets hold now, and dealt with it.

        From any thread. Of two that wait at once the later stands. An idle server's thread comes round within a second.
        """
        self._probe = _Probe(callback, len(os.listdir("/proc/self/fd")) + _EVENTS)
        if self.poll != self._first:
            self.poll = self._attentive

    def call_now(self) -> None:
        """Call the callback that waits for `once_idle`."""
        callback, self._callback = self._callback, None
        if callback is not None:
            _try(callback)


def _try(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception as error:
        _log.error("deferred callback failed", exc_info=error)


def call_soon(call: Any, callback: Callable[[], None]) -> bool:
    """Put `callback` at the end of the completion queue: a batch of no operations completes there at once."""

    def tag(event: Any) -> Any:
        _try(callback)
        return AGAIN

    started: bool = call.start_server_batch((), tag) == cygrpc.CallError.ok
    return started


def once_idle(callback: Callable[[], None]) -> bool:
    """Have `callback` called once the sockets have been read and nothing has come of it, or after a few events.

    For tags on a thread that serves a `ServingQueue`. False, and it is not called, on any other thread, or where
    another is waiting.
    """
    return _serving.queue is not None and _serving.queue.once_idle(callback)


def expect() -> None:
    """Call before a reply is sent: if few clients are active, the next message is expected soon, so poll for it."""
    if ARRIVALS.few() and _serving.queue is not None:
        _serving.queue.expect()


def no_longer_idle() -> None:
    """Call what waits on this thread now. For the end of a call: behind the last one a queue is not served any more."""
    if _serving.queue is not None:
        _serving.queue.call_now()


def when_read(server: grpc.Server, callback: Callable[[], None]) -> bool:
    """`ServingQueue.when_read` of the queue that `server` is on. False, and it is not called, if it is grpcio's own."""
    queue = getattr(getattr(server, "_state", None), "completion_queue", None)
    if not isinstance(queue, ServingQueue):
        return False
    queue.when_read(callback)
    return True


def server_on_queue(workers: futures.ThreadPoolExecutor, options: Any, *, spin_s: float) -> grpc.Server:
    """`grpc.server` with a `ServingQueue`, which spins for `spin_s` but where there is one core only.

    Where this grpcio builds its servers in another way it is one with grpcio's own queue.
    """
    with _patching:
        original = cygrpc.CompletionQueue
        cygrpc.CompletionQueue = ServingQueue
        try:
            server = grpc.server(workers, options=options)
        finally:
            cygrpc.CompletionQueue = original
    queue = _queue_of(server)
    if queue is not None and len(os.sched_getaffinity(0)) > 1:
        queue.spin_s = spin_s
    return server


def _queue_of(server: grpc.Server) -> ServingQueue | None:
    queue = getattr(getattr(server, "_state", None), "completion_queue", None)
    return queue if isinstance(queue, ServingQueue) else None


def beats(server: grpc.Server) -> int | None:
    """A number that changes with each look while `server`'s thread comes by for events; None where none can be had.

    An idle thread comes by once a second.
    """
    queue = _queue_of(server)
    return None if queue is None else queue.ask()
