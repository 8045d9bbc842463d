"""Notices a thread that has work and makes no progress, logs every thread's stack and reports the stall.

Time is counted by the watchdog's own passes. A pass that comes late is not counted, for what kept the watchdog from
running kept the other threads from running too: a process that is stopped or gets no CPU does not hang.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TypeAlias

import structlog

from .logs.configure import flush
from .threads import NoThread, started

_log = structlog.get_logger(__name__)

# A process that ends itself for a stall exits with this: EX_SOFTWARE of sysexits.h.
EXIT_CODE = 70

# By thread name, a number that changes with its progress; None while it has no work.
Marks: TypeAlias = Mapping[str, int | None]

_PASSES = 5  # at least, from the last progress to a stall
_PASS_S = 1.0
_LATE = 2.0  # times as long as a pass should take
_LOG_S = 2.0
_MOST_THREADS, _MOST_FRAMES, _MOST_CHARACTERS = 64, 40, 20_000
# Call threads come last: there can be thousands.
_MANY = ("calls", "stream-reader", "call-reader")


class Watchdog:
    """Looks at some threads' marks, on a thread of its own from `start` until `stop`."""

    def __init__(
        self,
        marks: Callable[[], Marks],
        after_s: float,
        changed: Callable[[str, bool], None],
        *,
        ends: bool = False,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        """Make a watchdog.

        Args:
            marks: of the threads to watch; called once a pass.
            after_s: seconds without progress after which a thread with work is stalled; 0: never.
            changed: called for each thread that stalls (True) or recovers (False), before anything is logged.
            ends: whether the process ends with a thread's first stall.
            end: ends the process.
        """
        self._marks = marks
        self._after_s = after_s
        self._changed = changed
        self._ends = ends
        self._end = end
        self._pass_s = min(_PASS_S, after_s / _PASSES)
        self._seen: dict[str, tuple[int, float]] = {}  # mark, seconds without progress
        self._stalled: frozenset[str] = frozenset()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start watching, unless the limit is 0."""
        if self._after_s:
            self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()

    def _watch(self) -> None:
        while True:
            began_s = time.monotonic()
            if self._stopping.wait(self._pass_s):
                return
            try:
                self.look(time.monotonic() - began_s)
            except Exception as error:  # a fault of ours: the next pass may do better
                _log.error("watchdog failed", exc_info=error)

    def look(self, passed_s: float) -> None:
        """Make one pass. It does not count if more time has passed than should have."""
        counted_s = self._pass_s if passed_s < _LATE * self._pass_s else 0.0
        seen = self._seen
        self._seen = {}
        for name, mark in self._marks().items():
            if mark is None:
                continue
            before, since_s = seen.get(name, (None, 0.0))
            self._seen[name] = (mark, since_s + counted_s if mark == before else 0.0)
        stalled = frozenset(name for name, (_, since_s) in self._seen.items() if since_s >= self._after_s)
        again, fresh = sorted(self._stalled - stalled), sorted(stalled - self._stalled)
        self._stalled = stalled
        for name in again:
            self._changed(name, False)
        for name in fresh:
            self._changed(name, True)
        if again:
            self._say(_log.info, "progress again", threads=again)
        if fresh:
            self._say(
                _log.error,
                "no progress",
                threads=fresh,
                after_s=self._after_s,
                ends=self._ends,
                stacks=stacks(),
            )
            if self._ends:
                self._end(EXIT_CODE)

    def _say(self, log: Callable[..., object], event: str, **facts: object) -> None:
        """Log, and wait a bounded time for the line to be written before the process may end."""

        def say() -> None:
            log(event, **facts)
            flush(_LOG_S)

        try:
            thread = started("watchdog-log", say)
        except NoThread:
            say()
        else:
            thread.join(_LOG_S)


def stacks() -> dict[str, list[str]]:
    """Each thread's stack, innermost frame last, bounded in size."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = [(names.get(ident, f"thread {ident}"), frame) for ident, frame in sys._current_frames().items()]
    found.sort(key=lambda each: each[0].startswith(_MANY))
    shown: dict[str, list[str]] = {}
    characters = 0
    for name, frame in found[:_MOST_THREADS]:
        lines = _lines(frame)
        characters += sum(map(len, lines))
        if characters > _MOST_CHARACTERS:
            break
        shown[name if name not in shown else f"{name} ({len(shown)})"] = lines
    return shown


def _lines(frame: FrameType | None) -> list[str]:
    lines: list[str] = []
    while frame is not None and len(lines) < _MOST_FRAMES:
        code = frame.f_code
        lines.append(f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return lines[::-1]
