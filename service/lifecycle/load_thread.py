"""Runs loads on their own thread, so a load that hangs can be given up and does not hold up the others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import structlog

from streamcell.service.engine.time_limit import TimeLimit
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.threads import NoThread, started

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)

# Seconds that an ended load has to stop, after the limit.
_SPARE_S = 1.0
_IDLEST = 19
_abandoned: list[threading.Thread] = []


def within(
    limit_s: float, limit: TimeLimit, make: Callable[[], _T], drop: Callable[[_T], None], what: str
) -> _T:
    """The result of `make`, unless it takes longer than `limit_s`; 0 for no limit.

    ONNX Runtime can end a run and, between two passes over the graph, the making of a session. A load that continues
    anyway is left on its thread, at the lowest priority; `drop` gets its result in the end.

    Raises:
        ModelLoadError: it took too long.
        NoThread: the machine gives no more threads.
        Exception: what `make` raises.
    """
    if not limit_s:
        return make()
    # Its result or error. Taken out again, so that an error and the frames it holds, an engine's among them, are
    # freed with the last reference.
    given: list[_T] = []
    raised: list[BaseException] = []
    state = _State()

    def work() -> None:
        try:
            given.append(make())
        except BaseException as error:
            raised.append(error)
        if state.end():
            for made in given:
                drop(made)

    limit.begin(limit_s)
    try:
        thread = started(f"load-{what}", work)
    except NoThread:
        limit.over()
        raise
    thread.join(limit_s + min(limit_s, _SPARE_S))
    late = f"loading it took longer than {limit_s:g} s; if the model is only large, raise --load-timeout-s"
    if state.give_up():
        _abandon(thread, what)
        raise ModelLoadError(late)
    thread.join()
    ended = limit.over()
    if given:
        return given.pop()
    error = raised.pop()
    try:
        if ended:
            raise ModelLoadError(late) from error
        raise error
    finally:
        del error


class _State:
    """Records whether a load ended or was given up, whichever came first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = self._given_up = False

    def end(self) -> bool:
        """Note that the load has ended; True if it had been given up."""
        with self._lock:
            self._ended = True
            return self._given_up

    def give_up(self) -> bool:
        """Give the load up, unless it has ended; True if it was given up."""
        with self._lock:
            self._given_up = not self._ended
            return self._given_up


def abandoned() -> bool:
    """True if a load that was given up still runs: then the interpreter cannot end the process normally."""
    return any(thread.is_alive() for thread in _abandoned)


def _abandon(thread: threading.Thread, what: str) -> None:
    _log.error("a load that does not end was given up; its thread goes on at the lowest priority", model=what)
    _abandoned[:] = [each for each in _abandoned if each.is_alive()]
    _abandoned.append(thread)
    if thread.native_id is not None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread.native_id, _IDLEST)
