"""Time limits on what ONNX Runtime does for a model, a run or a load. One thread looks after all of them.

ONNX Runtime looks between two nodes whether it is to end, in the bodies of loops too. One operator runs to its end.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from weakref import WeakSet

import onnxruntime as ort

from streamcell.service.threads import started

# ONNX Runtime's Python code looks this up for each run; a missing value costs an exception, 40 µs. The value says that
# the run is not a CUDA graph's.
_GRAPH_ID, _NO_GRAPH = "gpu_graph_id", "-1"
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.01, 1.0


class TimeLimit:
    """Ends what an engine is at, once that is due.

    The engine sets `due_s` as it begins and calls `over` as it ends; the watch's thread does the rest.

    Attributes:
        run_s: seconds that a run may take; infinity: any.
        due_s: when what the engine is at must be over, by `time.monotonic`.
    """

    def __init__(self, run_s: float = 0.0) -> None:
        """`run_s`: seconds that a run may take, 0 for any."""
        self.run_s = run_s or math.inf
        self.due_s = math.inf
        self._lock = threading.Lock()
        self._cancels: list[Callable[[bool], None]] = []
        self._ended = False
        if run_s:
            _WATCH.add(self, run_s)

    def run_options(self) -> ort.RunOptions:
        """Options for runs that can be ended. Several runs, one after another, may share them."""
        options = ort.RunOptions()
        options.add_run_config_entry(_GRAPH_ID, _NO_GRAPH)

        def cancel(on: bool) -> None:
            options.terminate = on

        self._cancel_by(cancel)
        return options

    def cover(self, options: ort.SessionOptions) -> None:
        """Let the limit end the making of a session with these options, if this ONNX Runtime supports it."""
        if hasattr(options, "set_load_cancellation_flag"):
            self._cancel_by(options.set_load_cancellation_flag)

    def _cancel_by(self, cancel: Callable[[bool], None]) -> None:
        with self._lock:
            self._cancels.append(cancel)
            if self._ended:
                cancel(True)

    def begin(self, limit_s: float) -> None:
        """Something begins that must be over in `limit_s`; 0 for no limit.

        Raises:
            NoThread: it is the first limit, and the machine gives no thread to watch it.
        """
        if limit_s:
            _WATCH.add(self, limit_s)
        self.due_s = time.monotonic() + limit_s if limit_s else math.inf

    @property
    def ended(self) -> bool:
        """Whether what the engine is at has been ended."""
        return self._ended

    def over(self) -> bool:
        """It is over; whether it was ended for having taken too long."""
        with self._lock:
            self.due_s = math.inf
            ended, self._ended = self._ended, False
            if ended:
                self._set(False)
        return ended

    def look(self, now_s: float) -> None:
        """End all runs and loads past their limits. For the watch's thread."""
        if now_s < self.due_s:
            return
        with self._lock:  # the flags of a run that just ended must not stay set for the next one
            if now_s >= self.due_s:
                self._ended = True
                self._set(True)

    def _set(self, on: bool) -> None:
        for cancel in self._cancels:
            cancel(on)


class _Watch:
    """The thread, which starts with the first limit, and the runs that it watches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: WeakSet[TimeLimit] = WeakSet()
        self._pause_s = _MOST_PAUSE_S
        self._sooner = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, limit: TimeLimit, limit_s: float) -> None:
        """Look at `limit`, often enough for limits of that length."""
        with self._lock:
            self._limits.add(limit)
            pause_s = max(_LEAST_PAUSE_S, limit_s / 8)
            if pause_s < self._pause_s:
                self._pause_s = pause_s
                self._sooner.set()
            if self._thread is None:
                self._thread = started("time-limits", self._look)

    def _look(self) -> None:
        while True:
            self._sooner.wait(self._pause_s)
            self._sooner.clear()
            with self._lock:
                limits = list(self._limits)
            for limit in limits:
                limit.look(time.monotonic())
            del limits


_WATCH = _Watch()
