"""Loads on a thread of their own, so that one that hangs is given up instead of holding up all others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import structlog

from streamcell.service.engine.time_limit import TimeLimit
from streamcell.service.load_errors import ModelLoadError

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)

# After the limit, what can be ended has so long to end.
_SPARE_S = 1.0
_IDLEST = 19
_abandoned: list[threading.Thread] = []


def within(
    limit_s: float, limit: TimeLimit, make: Callable[[], _T], drop: Callable[[_T], None], what: str
) -> _T:
    """What `make` gives, unless it takes longer than `limit_s`; 0 for no limit.

    ONNX Runtime ends a run and, between two passes over the graph, the making of a session when it is told to. What
    goes on all the same is left behind on its thread, at the lowest priority; `drop` gets what it makes in the end.

    Raises:
        ModelLoadError: it took too long.
        Exception: what `make` raises.
    """
    if not limit_s:
        return make()
    # What it gives or raises. Taken out again, so that an error and the frames it holds, an engine's among them, are
    # gone with the last who looks at it.
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
    thread = threading.Thread(target=work, name=f"load-{what}", daemon=True)
    thread.start()
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
    """Whether a load has ended or was given up: the first of the two stands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = self._given_up = False

    def end(self) -> bool:
        """It has ended; whether it had been given up."""
        with self._lock:
            self._ended = True
            return self._given_up

    def give_up(self) -> bool:
        """Give it up, unless it has ended; whether it was."""
        with self._lock:
            self._given_up = not self._ended
            return self._given_up


def abandoned() -> bool:
    """Whether any load still goes on that has been given up: then the process cannot end by the interpreter's way."""
    return any(thread.is_alive() for thread in _abandoned)


def _abandon(thread: threading.Thread, what: str) -> None:
    _log.error("a load that does not end was given up; its thread goes on at the lowest priority", model=what)
    _abandoned[:] = [each for each in _abandoned if each.is_alive()]
    _abandoned.append(thread)
    if thread.native_id is not None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread.native_id, _IDLEST)
