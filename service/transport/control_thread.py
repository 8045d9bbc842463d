"""The thread that runs slow control calls in slices, and leaves the GIL to other threads most of the time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator

import structlog

from streamcell.service.errors import ControlBusy
from streamcell.service.threads import started

_log = structlog.get_logger(__name__)

_MOST_WAITING = 64
# Between two slices the thread sleeps for this multiple of the slice's time, so that the serving threads have the GIL
# most of the time under any number of control calls.
_REST, _LEAST_REST_S, _MOST_REST_S = 3.0, 0.0005, 0.02


class ControlThread:
    """Runs jobs by turns, a slice each. A job is an iterator: each `next` is a slice, which should take under 1 ms.

    The thread is started with the first job.
    """

    def __init__(self) -> None:
        self._jobs: deque[Iterator[None]] = deque()
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._stopped = False

    def submit(self, job: Iterator[None]) -> None:
        """Queue `job`.

        Raises:
            ControlBusy: too many jobs are waiting.
            NoThread: the machine gives no thread for the first job; the next one asks again.
        """
        with self._changed:
            if len(self._jobs) >= _MOST_WAITING or self._stopped:
                raise ControlBusy(
                    f"{len(self._jobs)} control calls are waiting to be answered: ask again later, and less often",
                    limit=_MOST_WAITING,
                )
            if self._worker is None:
                self._worker = started("control", self._work)
            self._jobs.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """Refuse new jobs and drop the waiting ones."""
        with self._changed:
            self._stopped = True
            self._jobs.clear()
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._stopped)
                if self._stopped:
                    return
                job = self._jobs.popleft()
            began_s = time.perf_counter()
            try:
                next(job)
            except StopIteration:
                pass
            except Exception as error:  # a bug ends one job, not the thread
                _log.error("control job failed", exc_info=error)
            else:
                with self._changed:
                    if not self._stopped:
                        self._jobs.append(job)
            took_s = time.perf_counter() - began_s
            time.sleep(min(max(_REST * took_s, _LEAST_REST_S), _MOST_REST_S))
